"""Bulyan: Krum chooses rows, then each coordinate is a mean around the median."""

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
    """Bulyan: in each coordinate a mean around the median, over n - 2 f rows that Krum chooses.

    "The Hidden Vulnerability of Distributed Learning in Byzantium" (El Mhamdi et al., 2018). Each of the
    theta = n - 2 f rows is Krum's choice among the m that are left, with scores computed anew from their
    m - f - 2 nearest; then each coordinate is the mean of the beta = theta - 2 f values nearest to the
    median. By that formula the last choice has f - 1 neighbours, which is none for f = 1: here it has at
    least one. Both ends of the shortest distance then have the same score; the distance to the next
    neighbour decides, and where all are equal the lower row.
    """

    f: int
    second: Literal["paper", "trimmed"] = "paper"
    """The average of the second stage: the values nearest to the median (paper, Garfield, Flower), or all
    but the f largest and f smallest (the library `krum`). Garfield and `krum` select two rows less."""

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
        # It is nobody's neighbour any more: remove its entry from the list of each other row.
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
