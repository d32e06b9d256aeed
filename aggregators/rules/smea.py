"""SMEA, smallest maximum eigenvalue averaging."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram, mean_weights
from varangian.aggregators.numeric.algebra import Array, product
from varangian.aggregators.numeric.spectrum import leading
from varangian.aggregators.rules.spectral_filter import SpectralFilter

Out = NDArray[np.intp]
"""Rows that are left out: (f,), or (b, f) for b subsets."""
AT_ONCE = 1 << 17
"""Subsets that are in memory at once."""
FEW = 1 << 12
"""The number of subsets from which on each has a direction of its own."""
TINY = float(np.finfo(np.float64).tiny)
FAR = 10
"""Times the root of the scatter: a row that far out is in no better subset."""
SAME = 1e-12
"""Relative difference of eigenvalues that is rounding."""


@RULES.register("smea")
@dataclass(frozen=True, kw_only=True)
class SMEA:
    """SMEA: the mean of the n - f rows whose covariance has the smallest top eigenvalue.

    "On the Privacy-Robustness-Utility Trilemma in Distributed Learning" (Allouah et al., 2023). Exact,
    without the eigenvalues of all subsets: the variance in any direction is a lower bound of the top
    eigenvalue, and the top eigenvectors of a few subsets rule out almost all of the others.
    """

    f: int
    budget: int = 100_000
    """The most subsets of n - f rows; with more of them the rule refuses."""

    def __post_init__(self) -> None:
        check_f(self.f)
        check_count("budget", self.budget)

    def requires(self, n: int, f: int) -> str | None:
        subsets = math.comb(n, self.f)
        if n > self.f and subsets > self.budget:
            return f"it needs to search {subsets} subsets of n - f rows, and its budget is {self.budget}"
        return honest_majority(n, self.f) or told_enough(self, f)

    def kappa(self, n: int, f: int) -> float:
        """4 f / (n - f) (1 + f / (n - 2 f))^2, of the paper; there even in the spectral norm."""
        return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2

    def __call__(self, gram: Gram) -> Tensor:
        guess = np.arange(0)
        if self.f:
            guess = np.flatnonzero(SpectralFilter(f=1, iterations=self.f)(gram).numpy() == 0)
        gone = _least(gram.relative.numpy(), guess)
        return mean_weights(len(gram), np.delete(np.arange(len(gram)), gone))


def _least(products: Array, gone: Out) -> Out:
    """The f rows to leave out, by branch and bound: inner products (m, m), a first guess (f,) -> (f,)."""
    least, places = _scatter(products, gone)
    cuts = [_near(places, least)]
    for subsets in _subsets(len(products), len(gone)):
        bounds = np.max([_along(cut, subsets) for cut in cuts], axis=0)
        own: Array | None = None  # for each subset a direction in which it scatters much
        while True:
            better = bounds < least * (1 - SAME)
            subsets, bounds = subsets[better], bounds[better]
            if len(subsets) == 0:
                break
            first = int(bounds.argmin())
            found, places = _scatter(products, subsets[first])
            if found < least * (1 - SAME):
                least, gone = found, subsets[first]
            cuts.append(_near(places, least))
            bounds = np.maximum(bounds, _along(cuts[-1], subsets))
            if len(subsets) <= FEW:
                own = np.tile(cuts[-1], (len(subsets), 1)) if own is None else own[better]
                own, scatter = _turned(products, own, subsets)
                bounds = np.maximum(bounds, scatter)
            bounds[first] = np.inf
    return gone


def _scatter(products: Array, gone: Out) -> tuple[float, Array]:
    """The top eigenvalue of sum (x_i - mean)(x_i - mean)' over the rows that stay; all rows' places (m,).

    A place is the coordinate of a row along the eigenvector, from that mean.
    """
    kept = np.ones(len(products))
    kept[gone] = 0
    count = len(kept) - len(gone)
    variance, places = leading(products, kept / count)
    return variance * count, places - (kept @ places) / count


def _near(places: Array, scatter: float) -> Array:
    """Places, clipped where they are so far out that the others would be lost to rounding.

    Clipping lowers the scatter of a subset, never below the least that is known: the bound still holds.
    """
    most = FAR * math.sqrt(scatter)
    return np.clip(places, -most, most)


def _along(places: Array, subsets: Out) -> Array:
    """Scatter in one direction without each of the subsets, (b,): at most the top eigenvalue."""
    gone = places[subsets]
    count = len(places) - subsets.shape[1]
    sums, squares = places.sum() - gone.sum(axis=1), places @ places - np.square(gone).sum(axis=1)
    scatter: Array = squares - np.square(sums) / count
    return scatter


def _turned(products: Array, places: Array, subsets: Out) -> tuple[Array, Array]:
    """One step of the power method for each subset's direction: (b, m) places, and their scatter (b,)."""
    kept = np.ones_like(places)
    np.put_along_axis(kept, subsets, 0, axis=1)
    weights = _centred(places, kept)
    weights /= np.maximum(np.abs(weights).max(axis=1, keepdims=True), TINY)
    along = product(weights, products)
    lengths = np.sqrt(np.maximum((along * weights).sum(axis=1, keepdims=True), 0))
    turned = np.divide(along, lengths, out=np.zeros_like(along), where=lengths > 0)
    scatter: Array = np.square(_centred(turned, kept)).sum(axis=1)
    return turned, scatter


def _centred(places: Array, kept: Array) -> Array:
    """Places from the mean of the rows that are kept, and 0 for the others: (b, m)."""
    means = (places * kept).sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)
    centred: Array = (places - means) * kept
    return centred


def _subsets(n: int, f: int) -> Iterator[Out]:
    """All subsets of f of n rows, AT_ONCE at a time: (b, f) each."""
    if math.comb(n, f) <= AT_ONCE:
        yield _all_subsets(n, f)
        return
    every = combinations(range(n), f)
    while some := list(islice(every, AT_ONCE)):
        yield np.array(some, dtype=np.intp)


@lru_cache(maxsize=4)
def _all_subsets(n: int, f: int) -> Out:
    return np.array([*combinations(range(n), f)], dtype=np.intp).reshape(math.comb(n, f), f)
