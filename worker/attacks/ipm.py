"""Inner product manipulation: the honest mean, reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive


@ATTACKS.register("ipm")
@dataclass(frozen=True)
class Ipm:
    """Inner product manipulation (IPM): the honest mean, reversed: -epsilon mean.

    "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation" (Xie et al., 2019). The
    mean of all n vectors points the wrong way if and only if epsilon > (n - f) / f; a small epsilon hides
    among the honest vectors instead.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        return -self.epsilon * knows.honest.mean(dim=0)
