"""Min-max: as far from the honest mean as honest vectors are from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, HonestRows, measure, same_place


@ATTACKS.register("min_max")
@dataclass(frozen=True)
class MinMax:
    """Min-max: mean + gamma p, no further from any honest vector than two honest vectors are apart.

    "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning"
    (Shejwalkar and Houmansadr, 2021). The paper searches for the largest gamma by bisection. It has a
    closed form: with c_i = g_i - mean and D the largest distance of two vectors, gamma is the least of
    (<p, c_i> + sqrt(<p, c_i>^2 + |p|^2 (D^2 - |c_i|^2))) / |p|^2. The mean, the deviation and D are those
    of the vectors that are seen; the deviation is that of a population.

    Vector: mean + gamma p, gamma = min_i (<p, c_i> + sqrt(<p, c_i>^2 + |p|^2 (D^2 - |c_i|^2))) /
    |p|^2.
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
    """The largest gamma; 0 where the vectors are all the same, or there is no direction."""
    if rows.length == 0:
        return 0.0
    room = np.maximum(rows.sqdist.max() - rows.squares, 0)
    along = rows.along
    return float((along + np.sqrt(np.square(along) + rows.length * room)).min() / rows.length)
