"""Phocas: the mean around the trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.numeric.order import Nearest


@RULES.register("phocas")
@dataclass(frozen=True, kw_only=True)
class Phocas:
    """Phocas: in each coordinate the mean of the n - f values nearest to the trimmed mean.

    "Phocas: dimensional Byzantine-resilient stochastic gradient descent" (Xie et al., 2018). The trimmed
    mean is without the f largest and the f smallest values; of two values equally far from it on either
    side, the smaller is the nearer.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def order(self, m: int) -> Nearest:
        return Nearest(m - self.f, self.f, m - self.f)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
