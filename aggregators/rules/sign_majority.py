"""The majority vote of signs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_positive, honest_majority
from varangian.aggregators.numeric.order import Majority


@RULES.register("sign_majority")
@dataclass(frozen=True, kw_only=True)
class SignMajority:
    """Majority vote of signs: the sign that most rows have in each coordinate, times `scale`; 0 for a tie.

    "signSGD with Majority Vote is Communication Efficient and Fault Tolerant" (Bernstein et al., 2019). A
    zero is no vote. Every step has the same size in every coordinate: the learning rate is one for signs.
    """

    scale: float = 1.0
    """The size of each coordinate of the update."""

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def order(self, m: int) -> Majority:
        return Majority(self.scale)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)
