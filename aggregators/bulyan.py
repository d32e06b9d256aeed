"""Bulyan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.order import Nearest, Window


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
        m = len(gram)
        distances = torch.maximum(gram.sqdist, gram.sqdist.T)
        left, chosen = list(range(m)), list[int]()
        for _ in range(m - 2 * self.f):
            chosen.append(left.pop(_best(distances[left][:, left], self.f)))
        return torch.eye(m, dtype=torch.float64)[chosen]

    def order(self, m: int) -> Nearest | Window:
        if self.second == "trimmed":
            return Window(self.f, m - self.f)
        return Nearest(m - 2 * self.f, (m - 1) // 2, m // 2 + 1)

    def columnwise(self, block: Tensor) -> Tensor:
        return self.order(len(block))(block)


def _best(distances: Tensor, f: int) -> int:
    """Krum's choice, by the squared distances between the rows that are left: (m, m)."""
    m = len(distances)
    others = distances.masked_fill(torch.eye(m, dtype=torch.bool), torch.inf)
    scores = others.sort(dim=1).values.cumsum(dim=1)
    tied = torch.arange(m)
    for neighbours in range(max(1, m - f - 2), m):
        score = scores[tied, neighbours - 1]
        tied = tied[score == score.min()]
    return int(tied[0])
