"""The Covariance-bound Agnostic Filter."""

from __future__ import annotations

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
    """The weighted mean of least top variance, while rows far out in that direction lose their weight.

    "Towards Trustworthy Federated Learning with Untrusted Participants" (Allouah et al., 2025). In each
    pass every row is multiplied by 1 minus its squared distance from the weighted mean along the top
    eigenvector of the weighted covariance, over the largest of those; passes end when 2 f of the weight are
    gone, and the pass with the least top eigenvalue wins. No bound on the honest covariance is needed. The
    authors' library takes one random power step for the eigenvector, and lets rows without weight set the
    largest distance, so that one far row slows it down for ever; here the eigenvector is exact, and
    every pass silences at least one row.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

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
