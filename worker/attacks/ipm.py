"""Inner product manipulation: the honest mean, reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive
from varangian.worker.attacks.line_search import Objective, strongest

USUAL = 0.5
"""The epsilon where none is chosen, and where an optimal one cannot be found."""


@ATTACKS.register("ipm")
@dataclass(frozen=True)
class Ipm:
    """Inner product manipulation (IPM): the honest mean, reversed: -epsilon mean.

    "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation" (Xie et al., 2019). The
    mean of all n vectors points the wrong way if and only if epsilon > (n - f) / f; a small epsilon hides
    among the honest vectors instead.

    With `epsilon: optimal` attackers know the rule as well, and send the epsilon that does most harm to it
    in each round, as ByzFL's Optimal_InnerProductManipulation.

    Vector: -epsilon mean.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    epsilon: float | Literal["optimal"] = USUAL
    """Length of the reversed mean, in lengths of the mean."""
    objective: Objective = "deviation"
    """The quantity that the optimal epsilon makes largest: `deviation` is |F - mean|^2 of the update F,
    which guarantees of rules bound and ByzFL takes; `inner` is -<F, mean>, how far F points against it."""

    def __post_init__(self) -> None:
        if self.epsilon != "optimal":
            check_positive(epsilon=self.epsilon)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        mean = knows.honest.mean(dim=0)
        epsilon = self.epsilon
        if epsilon == "optimal":
            epsilon = strongest(knows, torch.zeros_like(mean), -mean, self.objective) or USUAL
        return -epsilon * mean
