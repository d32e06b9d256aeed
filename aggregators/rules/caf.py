"""CAF, the covariance-bound agnostic filter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram
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
    from at least one row.
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
        if f != self.f:
            return None
        root = math.sqrt(2 * (n - f) / (n - 2 * f))
        bound = f / (n - 2 * f) * (1 + (1 + math.sqrt(2)) * root) ** 2
        return min(bound, 2 * f / (n - 3 * f) * (1 + root) ** 2) if n > 3 * f else bound

    def __call__(self, gram: Gram) -> Tensor:
        inner = gram.relative.numpy()
        weights = best = np.ones(len(gram))
        least = np.inf
        while True:
            shares = weights / weights.sum()
            variance, places = leading(inner, shares)
            if variance < least:
                best, least = shares, variance
            distances = np.square(places - shares @ places)
            farthest = distances[weights > 0].max()
            if farthest > 0:
                weights = np.maximum(weights * (1 - distances / farthest), 0)
            if farthest <= 0 or weights.sum() <= len(gram) - 2 * self.f:
                return torch.from_numpy(best)
