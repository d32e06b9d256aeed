"""Centered clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, check_positive, honest_majority, light_minority
from varangian.aggregators.gram import Gram, factors, typical
from varangian.aggregators.numeric.shares import Shares


@RULES.register("centered_clipping")
@dataclass(frozen=True, kw_only=True)
class CenteredClipping:
    """Centered clipping: the centre plus the mean of the rows' offsets from it, each clipped to length tau.

    "Learning from History for Byzantine Robust Optimization" (Karimireddy et al., 2021). The centre is the
    reference, that is the last aggregate (zero in the first round), so the rule has no state. The paper
    sets tau by hand, and its analysis needs f <= 0.1 n; here tau is by default the median distance to the
    centre, computed anew in each iteration: it follows the scale of the rows, and no minority can raise it.
    With weights the mean and the median are weighted.
    """

    uses_reference: ClassVar[bool] = True

    tau: float | None = None
    """Radius in the units of the rows; null for the median distance to the centre."""
    iterations: int = 1

    def __post_init__(self) -> None:
        if self.tau is not None:
            check_positive("tau", self.tau)
        check_count("iterations", self.iterations)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, f)

    def __call__(self, gram: Gram) -> Tensor:
        m, shares = len(gram), gram.shares
        median = typical if shares is None else shares.median
        weights = np.zeros(m)  # of the offsets from the reference
        for _ in range(self.iterations):
            centre = torch.from_numpy(np.append(weights, 1 - weights.sum()))
            distances = np.sqrt(gram.sqdist_to(centre).numpy())
            tau = median(distances) if self.tau is None else self.tau
            kept = factors(distances, tau)
            pull = kept / m if shares is None else kept * shares.p
            weights = weights * (1 - pull.sum()) + pull
        return torch.from_numpy(np.append(weights, 1 - weights.sum()))
