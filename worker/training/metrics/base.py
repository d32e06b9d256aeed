"""The interface of a metric: sums over held-out samples, and the numbers to divide them by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from varangian.own_classes import OwnClasses
from varangian.plugins import InputError
from varangian.registry import Registry


class MetricError(InputError):
    """A metric that does not fit the model or the data; its text says what to do."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Held-out samples with the outputs of the model for them: a batch, or all of them."""

    outputs: Any
    """On the device; all of them at once are on the CPU."""
    targets: Any
    first: int
    """The place of the first of them among the held-out samples."""
    loss: Callable[[Any, Any], Tensor]
    """The loss of the run, from outputs and targets."""
    classes: int | None
    """The number of classes; None where the targets are numbers."""
    inputs: Any = None
    """As the model was given them; None where all outputs come at once."""


Totals: TypeAlias = Mapping[str, tuple[float, float]]
"""Of each value of a metric a sum over samples, and the number to divide it by. The name of a value is what
follows the name of the metric; it is empty for the one value of most metrics."""


class Metric(Protocol):
    """A metric on held-out data, reported by its name: one value or several."""

    by_class: ClassVar[bool | None]
    """Whether it needs class labels, or numbers; None is either."""
    whole: ClassVar[bool]
    """Whether it is computed from all held-out samples at once; otherwise sums of batches are divided."""

    def totals(self, samples: Evaluated, /) -> Totals:
        """The values for these samples.

        Raises:
            InputError: when it does not fit the model or the data.
        """
        ...


@runtime_checkable
class OnChangedInputs(Protocol):
    """A metric of the outputs for other inputs than the held-out samples as they are."""

    def changed(self, inputs: Any, /) -> Any:
        """The inputs for the model, from those of a batch; must not write to them.

        Raises:
            InputError: when the data is of another kind.
        """
        ...


class OwnMetric(Protocol):
    """A metric of the user as a class: called with the outputs and targets of all held-out samples.

    They are on the CPU. It returns one number, or a mapping of names to numbers. `name`, if it has one, is
    the name under which it is reported.
    """

    def __call__(self, outputs: Any, targets: Any, /) -> float | Mapping[str, float]: ...


def _lacks(cls: type[Any]) -> str:
    if any("__call__" in vars(base) or "totals" in vars(base) for base in cls.__mro__):
        return ""
    return (
        "should have the methods of a metric. It lacks `__call__(outputs, targets)`, which returns a "
        "number, or several by name"
    )


METRICS: Registry[Metric | OwnMetric] = Registry("metric", OwnClasses(_lacks))


def check_labels(**labels: int | tuple[int, ...] | None) -> None:
    """For `__post_init__`: classes or places, which are counted from 0."""
    for name, value in labels.items():
        found = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(label < 0 for label in found) or value == ():
            raise ValueError(f"`{name}` should be counted from 0, and not be empty. Found {value!r}")


def check_known(metric: str, labels: Iterable[int], classes: int) -> None:
    """See that classes exist.

    Raises:
        MetricError: one does not.
    """
    for label in labels:
        if label >= classes:
            raise MetricError(
                f"`metrics` {metric} should name classes from 0 to {classes - 1}, as the data has. "
                f"Found {label}."
            )


def value_name(metric: str, value: str) -> str:
    """The name of one value of a metric, as class_accuracy_3."""
    return f"{metric}_{value}" if value else metric


def added(before: Totals, more: Totals) -> Totals:
    """The sums of two sets of samples."""
    both = {name: (before.get(name, (0.0, 0.0)), more.get(name, (0.0, 0.0))) for name in {**before, **more}}
    return {name: (a + c, b + d) for name, ((a, b), (c, d)) in both.items()}
