"""Metrics of a model on held-out data, besides the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from varangian.plugins import InputError, call
from varangian.registry import Registry
from varangian.worker.data.base import IGNORED
from varangian.worker.training.losses import by_place, match_shape

TAKEN = ("round", "time", "lr", "train_loss", "update_norm", "seconds")
"""Names of what else is reported of a round."""


class MetricError(InputError):
    """A metric that does not fit the model or the data; its text says what to do."""


class Metric(Protocol):
    """A number that is reported by its name."""

    by_class: ClassVar[bool | None]
    """Whether it needs class labels, or numbers; None is either."""
    whole: ClassVar[bool]
    """Whether it is computed from all held-out samples at once; otherwise sums of batches are divided."""

    def total(self, outputs: Any, targets: Any, /) -> tuple[float, float]:
        """A sum over a batch, and the number to divide it by."""
        ...


METRICS: Registry[Metric] = Registry("metric")


@METRICS.register("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """Accuracy: the share of labels that have the highest score, from 0 to 1."""

    by_class: ClassVar[bool | None] = True
    whole: ClassVar[bool] = False

    def total(self, outputs: Any, targets: Any) -> tuple[float, float]:
        scores, labels = by_place(outputs, targets, "With `metrics` accuracy")
        counted = labels != IGNORED
        right = (scores.argmax(dim=1) == labels) & counted
        return int(right.sum()), int(counted.sum())


@METRICS.register("mae")
@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute error."""

    by_class: ClassVar[bool | None] = False
    whole: ClassVar[bool] = False

    def total(self, outputs: Any, targets: Any) -> tuple[float, float]:
        gaps = (match_shape(outputs, targets) - targets).abs().double()
        return float(gaps.sum()), gaps.numel()


@METRICS.register("custom")
@dataclass(frozen=True)
class Custom:
    """A metric of your own: `target: module:function`, called with (outputs, targets, **options).

    It gets the outputs for all held-out samples at once, on the CPU, and returns one number; its name is
    that of the function, unless `name` says otherwise.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    """The name under which it is reported; null is that of the function."""
    by_class: ClassVar[bool | None] = None
    whole: ClassVar[bool] = True

    def total(self, outputs: Any, targets: Any) -> tuple[float, float]:
        value = call(
            "metrics", self.target, {"outputs": outputs, "targets": targets}, self.options, MetricError
        )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise MetricError(
                f"`metrics` {self.target!r} should return one number. Found shape {list(value.shape)}."
            )
        try:
            return float(value), 1
        except (TypeError, ValueError):
            found = type(value).__name__
            raise MetricError(
                f"`metrics` {self.target!r} should return one number. Found {found}."
            ) from None


def name_of(metric: Metric) -> str:
    """The name under which a metric is reported."""
    if isinstance(metric, Custom):
        return metric.name or metric.target.rpartition(":")[2].rpartition(".")[2]
    return next(iter(METRICS.spec(metric)))


def choose_metrics(metrics: tuple[Metric, ...] | None, loss: str, classes: int | None) -> dict[str, Metric]:
    """Metrics by name; None is the accuracy where there are classes, and nothing where there are none.

    Raises:
        MetricError: one does not fit the loss.
    """
    if metrics is None:
        return {"accuracy": Accuracy()} if classes is not None else {}
    named = [name_of(metric) for metric in metrics]
    if len({*named, "loss"}) <= len(named):
        found = ", ".join(named)
        raise MetricError(f"`metrics` should have different names, none of them 'loss'. Found {found}.")
    for name in named:
        if name in TAKEN or name.startswith(("ema_", "validation_")):
            raise MetricError(
                f"`metrics` {name} has the name of another column of metrics.csv. Set `name`."
            )
        if not name.strip() or not name.isprintable():
            raise MetricError(f"`metrics` should have names that can be printed. Found {name!r}.")
    for metric in metrics:
        if metric.by_class is not None and metric.by_class != (classes is not None):
            kind = "class labels" if metric.by_class else "numbers as targets"
            raise MetricError(f"`metrics` {name_of(metric)} needs {kind}, which `loss` {loss} has not.")
    return dict(zip(named, metrics, strict=True))
