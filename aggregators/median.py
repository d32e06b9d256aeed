"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, honest_majority
from varangian.aggregators.order import ordered


@RULES.register("median")
@dataclass(frozen=True, kw_only=True)
class Median:
    """The median of each coordinate; of an even number of rows, halfway between the middle two.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018).
    `torch.median` takes the lower of the middle two, which is another rule.
    """

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def columnwise(self, block: Tensor) -> Tensor:
        middle = ordered(block, (len(block) - 1) // 2, len(block) // 2)
        # Halves first: the sum of two numbers near the largest float would overflow.
        return middle[0] if len(middle) == 1 else middle[0] / 2 + middle[1] / 2
