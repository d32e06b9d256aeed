"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, light_minority, told_enough
from varangian.aggregators.numeric.order import Window
from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.numeric.weighted_order import WeightedWindow


@RULES.register("trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Trimmed mean: the mean of each coordinate without its f largest and its f smallest values.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018). With
    weights, values of weight B are cut at either end, the last of them in part; B is what the f heaviest
    rows weigh.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def kappa(self, n: int, f: int) -> float:
        """6 f / (n - 2 f) (1 + f / (n - 2 f)), of "Fixing by Mixing" (Allouah et al., 2023)."""
        return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, self.f) or told_enough(self, f)

    def weighted_kappa(self, shares: Shares, f: int) -> float:
        """6 B / (1 - 2 B) (1 + B / (1 - 2 B)) with the weight budget B: that of rows split into copies."""
        share = shares.budget(f) / (1 - 2 * shares.budget(f))
        return 6 * share * (1 + share)

    def weighted_columns(self, shares: Shares) -> WeightedWindow:
        return WeightedWindow(tuple(shares.p.tolist()), shares.budget(self.f))

    def order(self, m: int) -> Window:
        return Window(self.f, m - self.f)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
