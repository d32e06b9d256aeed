"""Krum and Multi-Krum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, check_f, told_enough
from varangian.aggregators.gram import Gram, shares


class _Convention(NamedTuple):
    """A convention of scores; papers and libraries disagree."""

    others: int
    """A row has n - f - `others` neighbours."""
    squared: bool
    rest: int
    """Multi-Krum averages n - f - `rest` rows."""


CONVENTIONS = {
    "paper": _Convention(others=2, squared=True, rest=2),
    "byzfl": _Convention(others=1, squared=True, rest=0),
    "garfield": _Convention(others=1, squared=False, rest=2),
    "torchjd": _Convention(others=2, squared=False, rest=2),
}


@RULES.register("multi_krum", select="max")
@RULES.register("krum")
@dataclass(frozen=True, kw_only=True)
class Krum:
    """Krum: the mean of the `select` rows that lie closest to their n - f - 2 nearest others.

    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (Blanchard et al., 2017):
    scores are sums of squared distances; ties go to the lower row.
    """

    f: int
    select: int | Literal["max"] = 1
    """Rows to average; "max" is Multi-Krum's n - f - 2, or n - f for byzfl."""
    convention: Literal["paper", "byzfl", "garfield", "torchjd"] = "paper"
    """The sum that is a score: n - f - 2 squared distances in the paper, Flower and the library `krum`;
    n - f - 1 in ByzFL and ByzPy; n - f - 1 distances in Garfield and the Flag Aggregator's code; n - f - 2
    distances in TorchJD."""

    def __post_init__(self) -> None:
        check_f(self.f)
        if self.select != "max":
            check_count("select", self.select)

    def requires(self, n: int, f: int) -> str | None:
        if n < 2 * self.f + 3:
            return f"it needs n >= 2 f + 3, {2 * self.f + 3} for f = {self.f}, and n is {n}"
        rest = CONVENTIONS[self.convention].rest
        if self.select != "max" and self.select > n - self.f - rest:
            most = f"n - f - {rest}" if rest else "n - f"
            return f"it can select at most {most} = {n - self.f - rest} rows, not {self.select}"
        return told_enough(self, f)

    def kappa(self, n: int, f: int) -> float | None:
        """6 (1 + f / (n - 2 f)) with n - f - 1 neighbours, of "Fixing by Mixing" (Allouah et al., 2023).

        Of a row and its neighbours all but f are honest. With one neighbour less the same proof gives
        6 (n - f) / (n - 2 f - 1). The k least scores sum to no more than k times the mean score of the
        honest rows, so it holds for the mean of k rows, too.
        """
        convention = CONVENTIONS[self.convention]
        return 6 * (n - f) / (n - 2 * f + 1 - convention.others) if convention.squared else None

    def __call__(self, gram: Gram) -> Tensor:
        m, convention = len(gram), CONVENTIONS[self.convention]
        # The first column is each row's distance 0 to itself, which adds nothing.
        nearest = np.sort(gram.sqdist.numpy(), axis=1)[:, : m - self.f - convention.others + 1]
        scores = (nearest if convention.squared else np.sqrt(nearest)).sum(axis=1)
        select = m - self.f - convention.rest if self.select == "max" else self.select
        return shares(m, scores.argsort(kind="stable")[:select])
