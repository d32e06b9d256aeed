"""CAF, the covariance-bound agnostic filter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, light_minority, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.shares import CRUMB, Shares
from varangian.aggregators.numeric.spectrum import leading


@RULES.register("caf")
@dataclass(frozen=True, kw_only=True)
class CAF:
    """Covariance-bound agnostic filter: a weighted mean whose weights fall along the top eigenvector.

    "Towards Trustworthy Federated Learning with Untrusted Participants" (Allouah et al., 2025). In each
    pass the weight of every row is multiplied by 1 - d / max d, with d its squared distance from the
    weighted mean along the top eigenvector of the weighted covariance. Passes end when 2 f of the weight
    are gone; the result is the weighted mean of the pass with the least top eigenvalue. No bound on the
    honest covariance is needed. Unlike in the authors' library, which takes one random power step and lets
    rows without weight set the largest distance, the eigenvector is exact and every pass takes all weight
    from at least one row. Rows that have weights begin with them, and passes end when 2 B of the weight
    are gone; B is what the f heaviest rows weigh.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def kappa(self, n: int, f: int) -> float | None:
        """Our bound, not the paper's; None where the rule was told of more than f rows.

        f / (n - 2 f) (1 + (1 + √2) ρ)² with ρ² = 2 (n - f) / (n - 2 f), and for n > 3 f at most
        2 f / (n - 3 f) (1 + ρ)². It holds with the largest eigenvalue of the honest covariance in place of
        its trace; docs/concepts/robustness.md has the proof.
        """
        return _bound(n, f) if f == self.f else None

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, self.f) or told_enough(self, f)

    def weighted_kappa(self, shares: Shares, f: int) -> float | None:
        """That of equal rows with 1 in place of n, and the weight budget B in place of f.

        The proof adds up weights, and never counts rows: it holds as it stands for rows that begin with
        unequal ones.
        """
        return _bound(1.0, shares.budget(f)) if f == self.f else None

    def __call__(self, gram: Gram) -> Tensor:
        inner, shares = gram.relative.numpy(), gram.shares
        if shares is None:
            begin, enough = np.ones(len(gram)), float(len(gram) - 2 * self.f)
        else:
            begin, enough = shares.p, 1 - 2 * shares.budget(self.f) + CRUMB
        weights = best = begin
        least = np.inf
        while True:
            now = weights / weights.sum()
            variance, places = leading(inner, now)
            if variance < least:
                best, least = now, variance
            distances = np.square(places - now @ places)
            farthest = distances[weights > 0].max()
            if farthest > 0:
                weights = np.maximum(weights * (1 - distances / farthest), 0)
            if farthest <= 0 or weights.sum() <= enough:
                return torch.from_numpy(best)


def _bound(n: float, f: float) -> float:
    root = math.sqrt(2 * (n - f) / (n - 2 * f))
    bound = f / (n - 2 * f) * (1 + (1 + math.sqrt(2)) * root) ** 2
    return min(bound, 2 * f / (n - 3 * f) * (1 + root) ** 2) if n > 3 * f else bound
