"""The metrics of a run by the names under which they are reported."""

from __future__ import annotations

from typing import Any, cast

from varangian.worker.attacks import Attack, Backdoor
from varangian.worker.training.metrics.accuracy import Accuracy
from varangian.worker.training.metrics.backdoor_success import BackdoorSuccess
from varangian.worker.training.metrics.base import METRICS, Metric, MetricError, OwnMetric
from varangian.worker.training.metrics.own_code import Called, Custom

TAKEN = ("round", "time", "lr", "train_loss", "update_norm", "seconds")
"""Names of what else is reported of a round."""


def name_of(metric: Metric | OwnMetric) -> str:
    """The name under which a metric is reported."""
    if name := getattr(metric, "name", None):
        return str(name)
    written = metric.target if isinstance(metric, Custom) else METRICS.name(metric)
    return written.rpartition(":")[2].rpartition(".")[2]


def choose_metrics(
    metrics: tuple[Metric | OwnMetric, ...] | None,
    loss: str,
    classes: int | None,
    attack: Attack | None = None,
) -> dict[str, Metric]:
    """Metrics by name; None is the accuracy where there are classes, and nothing where there are none.

    With a backdoor as the attack of the run, None is its success as well.

    Raises:
        MetricError: one does not fit the loss.
    """
    if metrics is None:
        usual: dict[str, Metric] = {"accuracy": Accuracy()} if classes is not None else {}
        if usual and isinstance(attack, Backdoor):
            usual["backdoor_success"] = BackdoorSuccess().of(attack)
        return usual
    names = [name_of(metric) for metric in metrics]
    if len({*names, "loss"}) <= len(names):
        found = ", ".join(names)
        raise MetricError(
            f"`metrics` should have different names, none of them 'loss'. Found {found}. Set `name`."
        )
    for name in names:
        check_name(name)
    chosen = dict[str, Metric]()
    for name, metric in zip(names, metrics, strict=True):
        by_class = getattr(metric, "by_class", None)
        if by_class is not None and by_class != (classes is not None):
            kind = "class labels" if by_class else "numbers as targets"
            raise MetricError(f"`metrics` {name} needs {kind}, which `loss` {loss} has not.")
        of_one: Any = metric
        if isinstance(metric, BackdoorSuccess) and isinstance(attack, Backdoor):
            of_one = metric.of(attack)
        chosen[name] = of_one if hasattr(of_one, "totals") else cast("Metric", Called(of_one, by_class))
    return chosen


def check_name(name: str) -> None:
    """See that a value can be reported under a name.

    Raises:
        MetricError: it is the name of something else, or cannot be printed.
    """
    if name in TAKEN or name.startswith(("ema_", "validation_")):
        raise MetricError(f"`metrics` {name} has the name of another column of metrics.csv. Set `name`.")
    if not name.strip() or not name.isprintable():
        raise MetricError(f"`metrics` should have names that can be printed. Found {name!r}.")
