"""Coordinate drop: the honest vector with lost coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("coordinate_drop")
@dataclass(frozen=True)
class CoordinateDrop:
    """Coordinate drop: a random part of the honest vector is set to zero, as if packets were lost.

    The "drop" of the Flag Aggregator's experiments, where a tenth is lost. Each coordinate is lost on its
    own, and others in every round.

    Vector: g with each coordinate 0 with probability `fraction`.
    Source: the "drop" in the experiments of the Flag Aggregator (Almasi et al., 2024).
    """

    needs: ClassVar[Sight] = "own"
    fraction: float = 0.1
    """Probability that a coordinate is lost."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` should be above 0 and at most 1. Found {self.fraction}.")

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        lost = torch.rand(own.shape, generator=knows.rng, dtype=torch.float32) < self.fraction
        return own.masked_fill(lost.to(own.device), 0)
