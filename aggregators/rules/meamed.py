"""MeaMed, the mean around the median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.numeric.order import Nearest


@RULES.register("meamed")
@dataclass(frozen=True, kw_only=True)
class MeaMed:
    """Mean around the median: in each coordinate the mean of the n - f values nearest to the median.

    "Generalized Byzantine-tolerant SGD" (Xie et al., 2018). The median of an even number of rows is halfway
    between the middle two; of two values equally far from it on either side, the smaller is the nearer.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def order(self, m: int) -> Nearest:
        return Nearest(m - self.f, (m - 1) // 2, m // 2 + 1)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
