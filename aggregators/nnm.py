"""Nearest-neighbour mixing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram


@MIXINGS.register("nnm")
@dataclass(frozen=True, kw_only=True)
class NNM:
    """Each row becomes the mean of its n - f nearest rows, itself among them; ties go to the lower row.

    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity" (Allouah et al., 2023).
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def carried(self, n: int, f: int, kappa: float) -> float:
        """8 f / (n - f) (kappa + 1), of the paper."""
        return 8 * f / (n - f) * (kappa + 1)

    def outputs(self, n: int) -> int:
        return n

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        m = len(gram)
        nearest = gram.sqdist.argsort(dim=1, stable=True)[:, : m - self.f]
        return torch.zeros(m, m, dtype=torch.float64).scatter(1, nearest, 1 / (m - self.f))
