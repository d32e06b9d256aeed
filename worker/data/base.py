"""What a data set is: labelled samples in memory, split into training and held-out ones.

N  samples     C  classes     features  the shape of one sample, as (channels, height, width)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from varangian.registry import Registry


class DataError(ValueError):
    """Data that is missing or cannot be used; its text says what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples as they are kept: images stay bytes, because several processes of one machine hold them."""

    name: str
    classes: int
    train_x: Tensor
    """(N, *features), float32 or uint8."""
    train_y: Tensor
    """(N,), int64, 0 to classes - 1."""
    test_x: Tensor
    test_y: Tensor
    shift: tuple[float, ...] = (0.0,)
    """Subtracted from each channel of uint8 samples."""
    scale: tuple[float, ...] = (1.0,)
    """Divides each channel of uint8 samples, after `shift`."""

    def __post_init__(self) -> None:
        self._check("training", self.train_x, self.train_y)
        self._check("test", self.test_x, self.test_y)
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            found = f"{list(self.train_x.shape[1:])} and {list(self.test_x.shape[1:])}"
            raise DataError(f"{self.name}: training and test samples should have one shape. Found {found}.")

    def _check(self, part: str, x: Tensor, y: Tensor) -> None:
        here = f"{self.name}: the {part} samples"
        if len(x) == 0 or y.shape != (len(x),):
            raise DataError(f"{here} should have one label each. Found {len(x)} and {list(y.shape)}.")
        if x.dtype not in (torch.float32, torch.uint8) or y.dtype != torch.int64:
            found = f"{x.dtype} and {y.dtype}"
            raise DataError(f"{here} should be float32 or uint8, with int64 labels. Found {found}.")
        if not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            found = f"{int(y.min())} to {int(y.max())}"
            raise DataError(f"{here} should have labels from 0 to {self.classes - 1}. Found {found}.")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(f"{here} should be finite. Found NaN or infinity.")

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(self.train_x.shape[1:])

    def prepared(self, x: Tensor, device: torch.device) -> Tensor:
        """Some of the samples as a model takes them: normalised float32, on the device."""
        x = x.to(device)
        if x.dtype != torch.uint8:
            return x
        per_channel = (-1, *[1] * (x.dim() - 2))
        shift = torch.tensor(self.shift, device=device).view(per_channel)
        scale = torch.tensor(self.scale, device=device).view(per_channel)
        return (x.float() - shift) / scale


class Source(Protocol):
    """Where a data set comes from."""

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
