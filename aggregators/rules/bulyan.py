"""Bulyan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.order import Nearest, Window


@RULES.register("bulyan")
@dataclass(frozen=True, kw_only=True)
class Bulyan:
    """The mean around the median, in each coordinate, of n - 2 f rows that Krum chooses one after another.

    "The Hidden Vulnerability of Distributed Learning in Byzantium" (El Mhamdi et al., 2018): each of the
    theta = n - 2 f rows is the choice of Krum among the m that are left, scored anew by their m - f - 2
    nearest; then the mean of the beta = theta - 2 f values nearest to the median. That leaves f - 1
    neighbours for the last choice, and none for f = 1: here there is always one. The ends of the least
    distance then tie, and one neighbour more decides, and so on; at last the lower row.
    """

    f: int
    second: Literal["paper", "trimmed"] = "paper"
    """The values of the second stage: nearest to the median, as also in Garfield and Flower, or without the
    f largest and the f smallest, as in the library `krum`; that one and Garfield select two rows less."""

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        if n < 4 * self.f + 3:
            return f"it needs n >= 4 f + 3, {4 * self.f + 3} for f = {self.f}, and n is {n}"
        return told_enough(self, f)

    def select(self, gram: Gram) -> Tensor:
        return torch.from_numpy(np.eye(len(gram))[_chosen(gram.sqdist.numpy(), self.f)])

    def order(self, m: int) -> Nearest | Window:
        if self.second == "trimmed":
            return Window(self.f, m - self.f)
        return Nearest(m - 2 * self.f, (m - 1) // 2, m // 2 + 1)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)


def _chosen(distances: Array, f: int) -> list[int]:
    """The m - 2 f rows that Krum chooses one after another, by squared distances (m, m)."""
    m = len(distances)
    # For each row the others, nearest first; equal rows have equal distances, in the same order.
    order = np.argsort(distances + np.diag(np.full(m, -np.inf)), axis=1)[:, 1:]
    ends, left, chosen = np.take_along_axis(distances, order, axis=1), np.arange(m), list[int]()
    for _ in range(m - 2 * f):
        best = _best(ends, f)
        chosen.append(int(left[best]))
        # Nobody has it as a neighbour any more: of each of the others one entry goes.
        stay = order != chosen[-1]
        stay[best] = False
        left = np.delete(left, best)
        rest = len(left), max(0, len(left) - 1)
        ends, order = ends[stay].reshape(rest), order[stay].reshape(rest)
    return chosen


def _best(ends: Array, f: int) -> int:
    """Krum's choice, by the squared distances of each row to the others in ascending order: (m, m - 1)."""
    m = len(ends)
    neighbours = max(1, m - f - 2)
    scores = ends[:, :neighbours].sum(axis=1)
    tied = np.flatnonzero(scores == scores.min())
    for neighbour in range(neighbours, m - 1):
        if len(tied) == 1:
            break
        more = ends[tied, neighbour]
        tied = tied[more == more.min()]
    return int(tied[0])
