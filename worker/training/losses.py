"""Losses: the mean over a batch, from the outputs of the model and the targets.

B  samples of a batch     C  classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from varangian.plugins import InputError, call, target_name
from varangian.registry import Registry
from varangian.worker.data.base import IGNORED, DataError, Dataset, check_labels, format_whole_shape
from varangian.worker.data.samples import Samples, format_some, map_tensors, tensors


class LossError(InputError):
    """A loss that does not fit the model or the data; its text says what to do."""


class Loss(Protocol):
    """A loss function: the quantity that training minimises."""

    by_class: ClassVar[bool | None]
    """Whether targets are class labels, or numbers; None is either, as the data has it."""

    def __call__(self, outputs: Any, targets: Any, /) -> Tensor:
        """The mean over the batch, a scalar.

        Raises:
            LossError: when the outputs do not fit the targets.
        """
        ...


LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy of class scores: (B, C) with labels (B,), or a label for each token or pixel.

    Scores of several places of a sample are (B, places, C), as sequence models give them, or
    (B, C, places), as torch has it. Labels of -100 are left out.
    """

    by_class: ClassVar[bool | None] = True

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        scores, labels = by_place(outputs, targets)
        return functional.cross_entropy(scores, labels, ignore_index=IGNORED)


@LOSSES.register("mse")
@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared error, for numbers; outputs (B, 1) go with targets (B,)."""

    by_class: ClassVar[bool | None] = False

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return functional.mse_loss(match_shape(outputs, targets), targets)


@LOSSES.register("l1")
@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute error, for numbers; outputs (B, 1) go with targets (B,)."""

    by_class: ClassVar[bool | None] = False

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return functional.l1_loss(match_shape(outputs, targets), targets)


@LOSSES.register("bce_with_logits")
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross entropy of logits, for several labels of a sample: targets (B, labels) from 0 to 1."""

    by_class: ClassVar[bool | None] = False

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(match_shape(outputs, targets), targets)


@LOSSES.register("custom")
@dataclass(frozen=True)
class Custom:
    """A loss of your own: `target: module:function`, called with (outputs, targets, **options).

    It returns the mean over the batch, as a tensor. Integer targets stay labels, floats stay numbers.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)
    by_class: ClassVar[bool | None] = None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        given = {"outputs": outputs, "targets": targets}
        loss = call("loss", self.target, given, self.options, LossError)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise LossError(
                f"`loss` {self.target!r} should return one number as a tensor, the mean over the batch. "
                f"Found {found}."
            )
        return loss.reshape(())


def name_of(loss: Loss) -> str:
    """The name of a loss, as a user would write it."""
    return target_name(loss, LOSSES.name(loss)) if type(loss) in registered_types() else type(loss).__name__


def is_built_in_loss(loss: Loss) -> bool:
    """Whether a loss is one of those here, none of the user's."""
    return type(loss) in registered_types() and not hasattr(loss, "target")


def registered_types() -> set[type[Any]]:
    return {LOSSES.entry(name)[0] for name in LOSSES}


def by_place(outputs: Any, targets: Any, what: str = "With `loss` cross_entropy") -> tuple[Tensor, Tensor]:
    """Class scores and labels as torch's cross entropy takes them.

    Args:
        outputs: of the model.
        targets: labels.
        what: what needs them, to begin a message with.

    Raises:
        LossError: when there are not as many of one as of the other.
    """
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.dim() == targets.dim() + 1:
        if outputs.shape[:-1] == targets.shape:
            return outputs.flatten(0, -2), targets.flatten()
        if (outputs.shape[0], *outputs.shape[2:]) == targets.shape:
            return outputs, targets
    advice = "One-hot targets become labels with argmax(1)."
    if not isinstance(outputs, Tensor):
        advice = "Return the scores alone, or name a loss and metrics of your own."
    raise LossError(
        f"{what} the model should return scores of each class. Found {found_in(outputs)} for targets of "
        f"shape {found_in(targets)}. {advice}"
    )


def match_shape(outputs: Any, targets: Any) -> Tensor:
    """Outputs in the shape of the targets, where only axes of size 1 differ: nothing is broadcast.

    Raises:
        LossError: when the shapes differ otherwise.
    """
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        if outputs.shape == targets.shape:
            return outputs
        bare = [[size for size in tensor.shape[1:] if size != 1] for tensor in (outputs, targets)]
        if outputs.dim() and targets.dim() and len(outputs) == len(targets) and bare[0] == bare[1]:
            return outputs.reshape(targets.shape)
    raise LossError(
        "The model should return as many numbers as there are targets. Found outputs of shape "
        f"{found_in(outputs)} for targets of shape {found_in(targets)}. A loss of your own may compare."
    )


def found_in(value: Any) -> str:
    """The shape of what a model gives, or of targets: of several, the first ones."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return f"{{{format_some([f'{key!r}: {found_in(item)}' for key, item in value.items()])}}}"
    if isinstance(value, tuple):
        return f"({format_some([found_in(item) for item in value])})"
    return type(value).__name__


def fit_dataset(dataset: Dataset, loss: Loss, classes: int | None = None) -> Dataset:
    """The data with targets as the loss takes them, and with the number of classes, if there are any.

    Args:
        dataset: as it was loaded.
        loss: of the run.
        classes: their number in the run, if it is known; data may state its own.

    Raises:
        DataError: when the targets are of another kind than the loss.
    """
    y = dataset.train_y
    integers = isinstance(y, Tensor) and not y.is_floating_point()
    by_class = integers if loss.by_class is None else loss.by_class
    if not by_class:
        if isinstance(loss, BinaryCrossEntropy):
            for part, targets in (("training", y), ("test", dataset.test_y)):
                check_shares(f"{dataset.name}: the {part} samples", targets)
        same = loss.by_class is None  # a loss of one's own takes integers as they are
        train, test = ((part if same else map_tensors(part, Tensor.float)) for part in (y, dataset.test_y))
        return replace(dataset, classes=None, train_y=train, test_y=test)
    here, name = dataset.name, name_of(loss)
    train, test = (
        labels(f"{here}: the {part} samples", targets, name)
        for part, targets in (("training", y), ("test", dataset.test_y))
    )
    classes = dataset.classes or classes
    if classes is None:
        check_labels(f"{here}: the training samples", train, 1 << 31)
        classes = int(train.max()) + 1
    return replace(dataset, classes=classes, train_y=train, test_y=test)


def check_shares(here: str, y: Samples) -> None:
    """Targets of a binary cross entropy are from 0 to 1; it has no minimum for others."""
    for place, tensor in tensors(y):
        low, high = float(tensor.min()), float(tensor.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{here}{place} should have targets from 0 to 1 with `loss` bce_with_logits. Found {low:g} "
                f"to {high:g}. For other numbers choose another loss, as loss=mse."
            )


def labels(here: str, y: Samples, loss: str) -> Tensor:
    """Class labels as int64: floats only where they are whole numbers, and nothing is cut off."""
    numbers = "For numbers choose another loss, as loss=mse."
    if not isinstance(y, Tensor):
        raise DataError(
            f"{here} should have one tensor of labels with `loss` {loss}. Found {format_whole_shape(y)}."
        )
    if y.dim() == 2 and (y.is_floating_point() or y.shape[1] == 1):
        found = f"targets of shape {list(y.shape)}"
        advice = "Columns become labels with squeeze(1), one-hot rows with argmax(1)."
        raise DataError(f"{here} should have one label each with `loss` {loss}. Found {found}. {advice}")
    if y.is_floating_point():
        broken = y[y != y.round()]
        if broken.numel():
            raise DataError(
                f"{here} should have whole numbers as class labels with `loss` {loss}. "
                f"Found {float(broken[0]):g}. {numbers}"
            )
    return y.to(torch.int64)
