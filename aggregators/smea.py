"""Smallest maximum eigenvalue averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, check_positive, honest_majority, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.spectral_filter import SpectralFilter

AT_ONCE = 4096
"""Subsets whose eigenvalues are found in one call."""
SAME = 1e-12
"""Relative difference of eigenvalues that is rounding."""


@RULES.register("smea")
@dataclass(frozen=True, kw_only=True)
class SMEA:
    """The mean of the n - f rows whose covariance has the smallest top eigenvalue.

    "On the Privacy-Robustness-Utility Trilemma in Distributed Learning" (Allouah et al., 2023). Exact, by
    branch and bound: rows are taken in or left out one after another, and the scatter of the rows taken so
    far, not divided by their number, can only grow with every further one.
    """

    f: int
    budget: int = 100_000
    """Subsets of n - f rows that there may be. Most are pruned, but a round in which no row stands out
    has to look at many of them: of so many, for seconds."""

    def __post_init__(self) -> None:
        check_f(self.f)
        check_positive("budget", self.budget)

    def requires(self, n: int, f: int) -> str | None:
        subsets = math.comb(n, self.f)
        if n > self.f and subsets > self.budget:
            return f"it needs to search {subsets} subsets of n - f rows, and its budget is {self.budget}"
        return honest_majority(n, self.f) or told_enough(self, f)

    def kappa(self, n: int, f: int) -> float:
        """4 f / (n - f) (1 + f / (n - 2 f))^2, of the paper; there even in the spectral norm."""
        return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2

    def __call__(self, gram: Gram) -> Tensor:
        guess = torch.ones(len(gram), dtype=torch.bool)
        if self.f:
            guess = SpectralFilter(f=1, iterations=self.f)(gram) > 0
        kept = _least(gram.centered, _remotest_first(gram.sqdist), guess)
        return kept / kept.sum(dtype=torch.float64)


def _remotest_first(distances: Tensor) -> Tensor:
    """The order in which rows are decided: taking in a remote one soon exceeds the best."""
    return distances.quantile(0.5, dim=1).argsort(descending=True, stable=True)


def _least(products: Tensor, order: Tensor, best: Tensor) -> Tensor:
    """The subset of least scatter of the size of `best`, a first guess: (n, n), (n,), (n,) -> (n,)."""
    f = int((~best).sum())
    least = float(_scatter(products, best[None]))
    partial = torch.zeros(1, len(best), dtype=torch.bool)  # (b, n): the rows left out so far, fewer than f
    taken = torch.zeros_like(best)
    for row in order:
        taken[row] = True
        partial = torch.cat([partial, partial.index_fill(1, row, True)])
        gone = partial.sum(dim=1)
        whole, partial = ~partial[gone == f], partial[gone < f]
        values = _scatter(products, whole)
        if len(values) and float(values.min()) < least * (1 - SAME):
            least, best = float(values.min()), whole[values.argmin()]
        partial = partial[_scatter(products, ~partial & taken) < least * (1 - SAME)]
    return best


def _scatter(products: Tensor, subsets: Tensor) -> Tensor:
    """The top eigenvalue of sum (x_i - mean)(x_i - mean)' over each subset: (n, n), (b, n) bool -> (b,)."""
    return torch.cat([_eigenvalues(products, some) for some in subsets.split(AT_ONCE)])


def _eigenvalues(products: Tensor, subsets: Tensor) -> Tensor:
    inside = subsets.double()
    shares = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
    to_mean = shares @ products  # (b, n): inner products of the rows with the mean of the subset
    mean_square = (to_mean * shares).sum(dim=1)
    centred = products - to_mean[:, :, None] - to_mean[:, None, :] + mean_square[:, None, None]
    values: Tensor = torch.linalg.eigvalsh(centred * inside[:, :, None] * inside[:, None, :])
    return values[:, -1]
