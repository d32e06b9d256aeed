"""Min-sum: no further from all honest vectors together than the outermost of them is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, HonestRows, measure, same_place


@ATTACKS.register("min_sum")
@dataclass(frozen=True)
class MinSum:
    """Min-sum: mean + gamma p, with no larger sum of squared distances than the outermost honest vector.

    "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning"
    (Shejwalkar and Houmansadr, 2021). The paper searches for the largest gamma by bisection. It has a
    closed form: a vector at distance r from the mean has the sum k r^2 + sum |g_i - mean|^2, so gamma |p|
    is the distance of the outermost vector from the mean, whatever the direction. The mean and the
    deviation are those of the vectors that are seen; the deviation is that of a population.

    Vector: mean + gamma p, gamma = max_i |c_i| / |p|, with c_i = g_i - mean.
    """

    needs: ClassVar[Sight] = "colluders"
    usual: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    direction: Direction = "unit"
    """p: against the mean ("unit"), against the standard deviation ("std"), or against the signs of the
    mean ("sign")."""

    def requires(self, n: int, f: int, seen: int) -> str | None:
        return same_place(seen)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        rows = measure(knows.honest, self.direction)
        return rows.at(strength(rows), own)


def strength(rows: HonestRows) -> float:
    """The largest gamma; 0 where there is no direction."""
    return math.sqrt(float(rows.squares.max()) / rows.length) if rows.length else 0.0
