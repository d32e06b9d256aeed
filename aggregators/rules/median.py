"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from varangian.aggregators.base import RULES, honest_majority, light_minority
from varangian.aggregators.numeric.order import Window
from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.numeric.weighted_order import WeightedMedian


@RULES.register("median")
@dataclass(frozen=True, kw_only=True)
class Median:
    """The median of each coordinate; of an even number of rows, halfway between the middle two.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018). With
    weights it is the weighted median: half of the weight lies on either side.
    """

    convention: Literal["midpoint", "lower"] = "midpoint"
    """Of an even number of rows: halfway, as in the paper, numpy, ByzFL and Flower, or the lower of the
    middle two, as in `torch.median`, Garfield and ByzPy."""

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def kappa(self, n: int, f: int) -> float:
        """4 (1 + f / (n - 2 f))^2, of "Fixing by Mixing" (Allouah et al., 2023)."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, f)

    def weighted_kappa(self, shares: Shares, f: int) -> float:
        """4 (1 + B / (1 - 2 B))^2 with the weight budget B: that of rows split into equal copies."""
        budget = shares.budget(f)
        return 4 * (1 + budget / (1 - 2 * budget)) ** 2

    def weighted_columns(self, shares: Shares) -> WeightedMedian:
        return WeightedMedian(tuple(shares.p.tolist()), self.convention == "midpoint")

    def order(self, m: int) -> Window:
        last = m // 2 if self.convention == "midpoint" else (m - 1) // 2
        return Window((m - 1) // 2, last + 1)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
