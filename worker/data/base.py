"""The interface of a data set: samples in memory with their targets, in training and held-out ones.

N  samples     C  classes     features  the shape of one sample, as (channels, height, width)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from varangian.plugins import InputError
from varangian.registry import Registry
from varangian.worker.data.samples import (
    Samples,
    count,
    format_some,
    map_tensors,
    shapes,
    tensors,
    to_model_dtype,
)

IGNORED = -100
"""The label of a place in a sequence or an image that no loss looks at, as torch has it."""


class DataError(InputError):
    """Data that is missing or cannot be used; its text says what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples as they are kept: images stay bytes, because several processes of one machine hold them.

    Inputs and targets are tensors with samples along axis 0, or tuples or mappings of such tensors.
    """

    name: str
    classes: int | None
    """The number of classes: labels are 0 to classes - 1. None: found from the labels of the training
    samples if the loss is one of classes; a data set of numbers has none."""
    train_x: Samples
    """(N, *features). Floats reach the model as float32, integers as integers (tokens), uint8 as float32
    after `shift` and `scale`."""
    train_y: Samples
    """(N,) labels; or (N, ...) numbers, or a label for each token."""
    test_x: Samples
    test_y: Samples
    shift: tuple[float, ...] = (0.0,)
    """Subtracted from each channel of uint8 samples."""
    scale: tuple[float, ...] | None = None
    """Divides each channel of uint8 samples, after `shift`; (255.0,) for images. None without uint8."""
    validation_x: Samples | None = None
    """Samples that were held out of the training samples, to choose settings by; None if none were."""
    validation_y: Samples | None = None

    def __post_init__(self) -> None:
        self._check("training", self.train_x, self.train_y)
        self._check("test", self.test_x, self.test_y)
        for what in ("_x", "_y"):
            train, test = (shapes(getattr(self, part + what)) for part in ("train", "test"))
            if train != test:
                found = f"{format_shape(train)} and {format_shape(test)}"
                raise DataError(
                    f"{self.name}: training and test samples should have one shape. Found {found}."
                )

    def _check(self, part: str, x: Samples, y: Samples) -> None:
        here = f"{self.name}: the {part} samples"
        for both in (x, y):
            members = (
                both.values() if isinstance(both, dict) else both if isinstance(both, tuple) else (both,)
            )
            for other in (type(member) for member in members if not isinstance(member, Tensor)):
                raise DataError(
                    f"{here} should be tensors in a Dataset. Found {other.__name__}. Use torch.as_tensor, "
                    "or return (train_x, train_y, test_x, test_y), which may be arrays."
                )
        counts = {len(tensor) if tensor.dim() else 0 for both in (x, y) for _, tensor in tensors(both)}
        if len(counts) != 1 or 0 in counts:
            found = f"inputs of shape {format_whole_shape(x)} and targets of shape {format_whole_shape(y)}"
            raise DataError(f"{here} should have one label each, and be at least one. Found {found}.")
        if self.scale is None and any(tensor.dtype == torch.uint8 for _, tensor in tensors(x)):
            raise DataError(
                f"{here} are uint8, which may be images or token ids. For images say Dataset(..., "
                "scale=(255.0,)); for token ids make them int64, as x.long()."
            )
        for what, both in (("", x), (" as targets", y)):
            for place, tensor in tensors(both):
                if tensor.is_complex():
                    raise DataError(f"{here}{place} should be real{what}. Found {tensor.dtype}.")
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise DataError(f"{here}{place} should be finite{what}. Found NaN or infinity.")
        if self.classes is not None:
            check_labels(here, y, self.classes)

    @property
    def features(self) -> Any:
        """The shape of one sample, or a tuple or a mapping of shapes."""
        return shapes(self.train_x)

    @property
    def outputs(self) -> int:
        """The size of the model's output for a sample: classes, or as many as its target has."""
        if self.classes is not None:
            return self.classes
        shape = self.train_y.shape[1:] if isinstance(self.train_y, Tensor) else ()
        return shape[-1] if shape else 1

    @property
    def labels(self) -> Tensor | None:
        """(N,) the class of each training sample; None where samples do not have one class each."""
        y = self.train_y
        return y if self.classes is not None and isinstance(y, Tensor) and y.dim() == 1 else None

    @property
    def size(self) -> int:
        """The number of training samples."""
        return count(self.train_x)

    def on(self, device: torch.device) -> Dataset:
        """The same samples on a device."""

        def moved(samples: Samples) -> Samples:
            return map_tensors(samples, lambda tensor: tensor.to(device))

        x, y = self.validation_x, self.validation_y
        return replace(
            self,
            train_x=moved(self.train_x),
            train_y=moved(self.train_y),
            test_x=moved(self.test_x),
            test_y=moved(self.test_y),
            validation_x=None if x is None else moved(x),
            validation_y=None if y is None else moved(y),
        )

    def prepared(self, x: Samples, device: torch.device) -> Any:
        """A batch of samples as a model takes them, on the device: float32 or integers."""
        return map_tensors(x, lambda tensor: self._prepared(tensor.to(device)))

    def _prepared(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or self.scale is None:
            return to_model_dtype(x)
        shift, scale = (
            per_channel(tuple(values), x.dim() - 2, x.device) for values in (self.shift, self.scale)
        )
        return (x.float() - shift) / scale


@functools.lru_cache(maxsize=16)
def per_channel(values: tuple[float, ...], dimensions: int, device: torch.device) -> Tensor:
    """Constants of the channels of samples, (channels, 1, ...); must not be written to."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, *[1] * dimensions)


def check_labels(here: str, y: Samples, classes: int) -> None:
    """Class labels: one for each sample, or one for each of its places.

    Raises:
        DataError: labels of another kind, or out of range.
    """
    if not isinstance(y, Tensor):
        raise DataError(f"{here} should have one tensor of class labels. Found {type(y).__name__}.")
    if y.is_floating_point() or y.is_complex():
        raise DataError(f"{here} should have integers as class labels. Found {y.dtype}.")
    counted = y[y != IGNORED] if y.dim() > 1 else y
    if not counted.numel():
        raise DataError(f"{here} should have labels. Found only {IGNORED}, which stands for none.")
    low, high = int(counted.min()), int(counted.max())
    if low < 0:
        raise DataError(
            f"{here} should have labels from 0 on. Found {low} to {high}. Others become such labels with "
            "torch.unique(y, return_inverse=True)[1]."
        )
    if not 0 <= low <= high < classes:
        raise DataError(
            f"{here} should have labels from 0 to {classes - 1}. Found {low} to {high}. The number of "
            "classes can be stated, as data.custom.classes."
        )


def format_shape(shape: Any) -> str:
    """A shape as torch prints it."""
    if isinstance(shape, dict):
        return f"{{{', '.join(f'{key}: {format_shape(one)}' for key, one in shape.items())}}}"
    if shape and isinstance(shape[0], tuple):
        return f"({', '.join(map(format_shape, shape))})"
    return str(list(shape))


def format_whole_shape(samples: Samples) -> str:
    """The shape of all samples, for messages."""
    if isinstance(samples, Tensor):
        return str(list(samples.shape))
    return format_some([f"{place} {list(tensor.shape)}" for place, tensor in tensors(samples)]) or "nothing"


class Source(Protocol):
    """A source of a data set."""

    def load(self) -> Dataset:
        """Read it.

        Raises:
            DataError: when it is not there or not what it should be.
        """
        ...


DATASETS: Registry[Source] = Registry("data set")


def check_limits(**limits: int | None) -> None:
    """For `__post_init__`: counts of samples to keep, None for all."""
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"`{name}` should be at least 1, or null for all. Found {limit}.")


def check_classes(classes: int | None) -> None:
    """For `__post_init__`: a stated number of classes."""
    if classes is not None and not 1 <= classes < math.inf:
        raise ValueError(f"`classes` should be at least 1, or null. Found {classes}.")
