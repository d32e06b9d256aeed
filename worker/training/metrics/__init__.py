"""Metrics of a model on held-out data besides the loss, one kind in each file.

A metric is a frozen dataclass that gives sums over samples. The trainer evaluates them; the configuration
imports the registry.
"""

from varangian.worker.training.metrics.accuracy import Accuracy, ClassAccuracy
from varangian.worker.training.metrics.attack_success import AttackSuccess
from varangian.worker.training.metrics.backdoor_success import BackdoorSuccess
from varangian.worker.training.metrics.base import (
    METRICS,
    Evaluated,
    Metric,
    MetricError,
    OnChangedInputs,
    OwnMetric,
    Totals,
    added,
    value_name,
)
from varangian.worker.training.metrics.choice import check_name, choose_metrics
from varangian.worker.training.metrics.mean_absolute_error import MeanAbsoluteError
from varangian.worker.training.metrics.own_code import Custom
from varangian.worker.training.metrics.subset_loss import SubsetLoss

__all__ = [
    "METRICS",
    "Accuracy",
    "AttackSuccess",
    "BackdoorSuccess",
    "ClassAccuracy",
    "Custom",
    "Evaluated",
    "MeanAbsoluteError",
    "Metric",
    "MetricError",
    "OnChangedInputs",
    "OwnMetric",
    "SubsetLoss",
    "Totals",
    "added",
    "check_name",
    "choose_metrics",
    "value_name",
]
