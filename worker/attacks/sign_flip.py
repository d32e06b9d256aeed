"""Sign flip: the honest vector, reversed and enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive


@ATTACKS.register("sign_flip")
@dataclass(frozen=True)
class SignFlip:
    """Sign flip: the attacker's own honest vector, reversed and enlarged: -scale g.

    The scale of 10 is that of the experiments of "Flag Aggregator: Scalable Distributed Training under
    Failures and Augmented Losses using Convex Optimization" (Almasi et al., 2024). Other papers
    reverse the mean of the honest vectors; that is `ipm`.

    Vector: -scale g, for the own honest vector g.
    """

    needs: ClassVar[Sight] = "own"
    scale: float = 10.0

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        return -self.scale * own
