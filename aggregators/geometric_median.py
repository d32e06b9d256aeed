"""The geometric median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_positive, honest_majority
from varangian.aggregators.gram import Gram


@RULES.register("rfa", convention="rfa", smoothing=1e-5, tolerance=1e-6, iterations=4)
@RULES.register("geometric_median")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration to convergence.

    "Robust Aggregation for Federated Learning" (Pillutla et al., 2022): smoothed Weiszfeld. That paper's
    code stops after a few steps from the mean, which one distant row can hold captive. Here the iteration
    starts in the middle of the tightest majority, and rows are first tested for being the median
    themselves, where Weiszfeld's weights are singular. `rfa` is the paper's code as it is released.
    """

    convention: Literal["exact", "rfa"] = "exact"
    """To convergence, or as RFA's code does: not robust, for after k steps a row at distance D still holds
    it about D / (n - 1)^k away."""
    smoothing: float = 1e-6
    """Distances below this share of the radius of the tightest majority count as this long; for rfa, below
    this length in the units of the rows."""
    tolerance: float = 1e-9
    """Converged when a step is shorter than this share of the same radius; for rfa, when it lowers the sum
    of distances by less than this share."""
    iterations: int = 1000
    """Steps after which it gives up on more accuracy."""

    def __post_init__(self) -> None:
        check_positive("smoothing", self.smoothing)
        check_positive("tolerance", self.tolerance)
        check_positive("iterations", self.iterations)

    @property
    def robust(self) -> bool:
        return self.convention == "exact"

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def kappa(self, n: int, f: int) -> float | None:
        """4 (1 + f / (n - 2 f))^2, of "Fixing by Mixing" (Allouah et al., 2023)."""
        return 4 * (1 + f / (n - 2 * f)) ** 2 if self.robust else None

    def __call__(self, gram: Gram) -> Tensor:
        return self._converged(gram) if self.convention == "exact" else self._released(gram)

    def _converged(self, gram: Gram) -> Tensor:
        medians = _rows_that_are_medians(gram).double()
        if bool(medians.any()):
            return medians / medians.sum()
        weights, radius = _tightest_majority(gram)
        for _ in range(self.iterations):
            distance = gram.sqdist_to(weights).sqrt().clamp(min=self.smoothing * radius)
            pull = radius / distance
            before, weights = weights, pull / pull.sum()
            step = gram.squares(gram.combination((weights - before)[None]))
            if float(step) <= (self.tolerance * radius) ** 2:
                break
        return weights

    def _released(self, gram: Gram) -> Tensor:
        weights = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
        before = torch.inf
        for _ in range(self.iterations):
            distance = gram.sqdist_to(weights).sqrt()
            cost = float(distance.sum())
            if before - cost < self.tolerance * cost:
                break
            pull = 1 / distance.clamp(min=self.smoothing)
            before, weights = cost, pull / pull.sum()
        return weights


def _rows_that_are_medians(gram: Gram) -> Tensor:
    """Rows where zero is a subgradient of the sum of distances: (m,) bool.

    The unit vectors from such a row to all the others sum to no more than the number of its copies.
    """
    near = gram.sqdist == 0
    pulls = torch.where(near, 0.0, gram.sqdist.rsqrt())
    sums = pulls - torch.diag(pulls.sum(dim=1))
    force = ((sums @ gram.centered) * sums).sum(dim=1).clamp(min=0).sqrt()
    return force <= near.sum(dim=1) * (1 + 1e-9)


def _tightest_majority(gram: Gram) -> tuple[Tensor, float]:
    """Weights of the mean of the smallest ball about a row that holds most rows, and its radius.

    Byzantine rows are no majority: the ball is no wider than the honest rows are apart, and holds one.
    """
    majority = len(gram) // 2 + 1
    distances, nearest = gram.sqdist.sort(dim=1, stable=True)
    centre = int(distances[:, majority - 1].argmin())
    weights = torch.zeros(len(gram), dtype=torch.float64)
    weights[nearest[centre, :majority]] = 1 / majority
    return weights, float(distances[centre, majority - 1].sqrt())
