"""Krum and Multi-Krum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES, above, check_count, check_f, light_minority, told_enough
from varangian.aggregators.gram import Gram, mean_weights
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.shares import Shares, filled


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

    With weights p, and B that of the f heaviest rows, n - f neighbours, a row itself among them, become the
    nearest of weight 1 - B, the last in part, and a neighbour less is one of the weight of the row itself;
    each distance counts p_j times. Multi-Krum averages by p, up to the weight 1 - B (less 2 / n where it
    leaves out two rows more).
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

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        """2 B + max p < 1: beside a Byzantine row most of the neighbours' weight is honest."""
        budget, least = shares.budget(self.f), self._least_weight(shares)
        if reason := light_minority(shares, self.f):
            return reason
        if not above(1, 2 * budget + shares.largest):
            return (
                f"it needs 2 B + max p < 1, and the {self.f} heaviest rows have B = {budget:.3g} of the "
                f"weight, the heaviest one {shares.largest:.3g}"
            )
        if self.select == "max" and not above(least, 0):
            return f"it can select no weight: it leaves out 2 rows of {len(shares)}, and the f heaviest"
        if self.select != "max" and self.select > 1:
            most = float(np.sort(shares.p)[::-1][: self.select].sum())
            if self.select > len(shares) or above(most, least):
                share = f"{least:.3g} of the weight"
                return f"it can select rows of {share}, and {self.select} may have {most:.3g}"
        return told_enough(self, f)

    def weighted_kappa(self, shares: Shares, f: int) -> float | None:
        """6 (1 - B) / (1 - 2 B), with 1 - 2 B - max p below where a row has a neighbour less.

        Let S be rows of weight 1 - B, the last in part, with the mean m and the variance v about it, and q
        the weights of the neighbours of the chosen row x. Of a row of S the score is at most its sum over
        S, and these sums have the mean 2 (1 - B) v; so the score of x is no larger. Its neighbours have at
        least the weight h = 1 - 2 B (less max p) in S, and |x - m|^2 <= 2 |x - x_j|^2 + 2 |x_j - m|^2. The
        sum over them with weights q_j <= p_j is h |x - m|^2 <= 4 (1 - B) v + 2 (1 - B) v. Rows of less
        weight than B are a mean of such S. For the mean of several rows it is as without weights.
        """
        convention, budget = CONVENTIONS[self.convention], shares.budget(f)
        if not convention.squared:
            return None
        return 6 * (1 - budget) / (1 - 2 * budget - (convention.others - 1) * shares.largest)

    def _least_weight(self, shares: Shares) -> float:
        """The weight of the rows that Multi-Krum averages."""
        return 1 - shares.budget(self.f) - CONVENTIONS[self.convention].rest / len(shares)

    def _weighted(self, distances: Array, shares: Shares) -> Tensor:
        convention, p = CONVENTIONS[self.convention], shares.p
        order = np.argsort(distances, axis=1, kind="stable")
        upto = 1 - shares.budget(self.f) - (convention.others - 1) * p
        nearest = np.take_along_axis(distances, order, axis=1)
        counted = filled(p[order], upto)
        scores = (counted * (nearest if convention.squared else np.sqrt(nearest))).sum(axis=1)
        best, weights = scores.argsort(kind="stable"), np.zeros(len(p))
        if self.select == "max":
            weights[best] = filled(p[best], self._least_weight(shares))
        else:
            weights[best[: self.select]] = p[best[: self.select]]
        return torch.from_numpy(weights / weights.sum())

    def __call__(self, gram: Gram) -> Tensor:
        if gram.shares is not None:
            return self._weighted(gram.sqdist.numpy(), gram.shares)
        m, convention = len(gram), CONVENTIONS[self.convention]
        # The first column is each row's distance 0 to itself, which adds nothing.
        nearest = np.sort(gram.sqdist.numpy(), axis=1)[:, : m - self.f - convention.others + 1]
        scores = (nearest if convention.squared else np.sqrt(nearest)).sum(axis=1)
        select = m - self.f - convention.rest if self.select == "max" else self.select
        return mean_weights(m, scores.argsort(kind="stable")[:select])
