"""Gaussian noise in place of the vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive


@ATTACKS.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise: each coordinate is drawn from N(0, sigma^2).

    Sigma is 200 as in "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (Blanchard
    et al., 2017). Vectors of different attackers are nearly orthogonal.

    Vector: each coordinate from N(0, sigma^2).
    """

    needs: ClassVar[Sight] = "own"
    sigma: float = 200.0
    """Standard deviation of a coordinate."""

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        noise = torch.randn(own.shape, generator=knows.rng, dtype=own.dtype)
        return (self.sigma * noise).to(own.device)
