"""Synthetic data: Gaussian blobs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.worker.data.base import DATASETS, Dataset, check_limits
from varangian.worker.seeds import generator


@DATASETS.register("synthetic")
@dataclass(frozen=True)
class Synthetic:
    """Gaussian blobs, one for each class: for tests, and for timing a model of any size."""

    classes: int = 4
    features: int | tuple[int, ...] = 16
    """Shape of one sample."""
    train: int = 512
    """Training samples."""
    test: int = 128
    """Held-out samples."""
    spread: float = 1.0
    """Standard deviation within a blob; the centres are drawn with 1 in each direction."""
    seed: int = 0
    """Of the samples; the seed of the run does not change the data."""

    def __post_init__(self) -> None:
        check_limits(classes=self.classes, train=self.train, test=self.test)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(
                f"`features` should be one or more sizes of at least 1. Found {self.features!r}."
            )
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"`spread` should be a finite number of at least 0. Found {self.spread}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.features,) if isinstance(self.features, int) else self.features

    def load(self) -> Dataset:
        centres = torch.randn(
            self.classes, *self.shape, generator=generator(self.seed, "centres"), dtype=torch.float32
        )
        return Dataset(
            "synthetic",
            self.classes,
            *self._samples(centres, "train", self.train),
            *self._samples(centres, "test", self.test),
        )

    def _samples(self, centres: Tensor, part: str, count: int) -> tuple[Tensor, Tensor]:
        """Samples, as many of each class as `count` allows."""
        y = torch.arange(count) % self.classes
        noise = torch.randn(
            count, *self.shape, generator=generator(self.seed, "samples", part), dtype=torch.float32
        )
        return centres[y] + self.spread * noise, y
