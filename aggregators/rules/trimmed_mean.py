"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.numeric.order import Window


@RULES.register("trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Trimmed mean: the mean of each coordinate without its f largest and its f smallest values.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018).
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def kappa(self, n: int, f: int) -> float:
        """6 f / (n - 2 f) (1 + f / (n - 2 f)), of "Fixing by Mixing" (Allouah et al., 2023)."""
        return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))

    def order(self, m: int) -> Window:
        return Window(self.f, m - self.f)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
