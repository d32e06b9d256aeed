"""Metrics of the user, by the name of a function or of a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from varangian.own_classes import named
from varangian.plugins import call, guard
from varangian.worker.training.metrics.base import METRICS, Evaluated, MetricError, OwnMetric, Totals


@METRICS.register("custom")
@dataclass(frozen=True)
class Custom:
    """A metric of your own: `target: module:function`, called with (outputs, targets, **options).

    It gets the outputs for all held-out samples at once, on the CPU, and returns one number, or a mapping
    of names to numbers; its name is that of the function, unless `name` says otherwise.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    """The name under which it is reported; null is that of the function."""
    by_class: ClassVar[bool | None] = None
    whole: ClassVar[bool] = True

    def totals(self, samples: Evaluated) -> Totals:
        given = {"outputs": samples.outputs, "targets": samples.targets}
        return numbers(self.target, call("metrics", self.target, given, self.options, MetricError))


@dataclass(frozen=True)
class Called:
    """A metric of the user as a class, with the methods of a metric."""

    own: OwnMetric
    by_class: bool | None = None
    whole: ClassVar[bool] = True

    @property
    def target(self) -> str:
        return named(self.own)

    def totals(self, samples: Evaluated) -> Totals:
        with guard(f"`metrics` {self.target!r}", "", self.target, MetricError):
            return numbers(self.target, self.own(samples.outputs, samples.targets))


def numbers(target: str, found: Any) -> Totals:
    """The result of code of the user, as values by name.

    Raises:
        MetricError: it is neither a number nor a mapping of numbers.
    """
    if isinstance(found, Mapping):
        return {str(name): (_number(target, value), 1) for name, value in found.items()}
    return {"": (_number(target, found), 1)}


def _number(target: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise MetricError(
            f"`metrics` {target!r} should return one number. Found shape {list(value.shape)}."
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        found = type(value).__name__
        raise MetricError(f"`metrics` {target!r} should return one number. Found {found}.") from None
