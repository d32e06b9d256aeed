"""MDA, minimum-diameter averaging."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest

import numpy as np
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram, mean_weights
from varangian.aggregators.numeric.algebra import Array

EQUAL = 1e-9
"""Relative difference of squared distances that counts as none, so that rounding breaks no tie."""


@RULES.register("mda")
@dataclass(frozen=True, kw_only=True)
class MDA:
    """Minimum-diameter averaging: the mean of the n - f rows whose greatest distance is least.

    "Genuinely Distributed Byzantine Machine Learning" (El Mhamdi et al., 2020). Exact, without a search of
    all subsets: the f rows left out are a vertex cover of the pairs that are farther apart than the
    diameter, and the least diameter that has such a cover is found by bisection. Where several subsets have
    it, the remotest row is left out that can be (by the sum of its squared distances to its n - f - 1
    nearest), then the next that still can; of equally remote ones the higher.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def __call__(self, gram: Gram) -> Tensor:
        return mean_weights(len(gram), _tightest(gram.sqdist.numpy(), self.f))


def _tightest(distances: Array, f: int) -> list[int]:
    """The m - f rows of least diameter, by squared distances (m, m)."""
    m = len(distances)
    nearest = np.sort(distances, axis=1)
    far = _far(distances, _least_diameter(distances, nearest[:, m - f - 1], f))
    scores = nearest[:, : m - f].sum(axis=1).tolist()
    left, budget = 2**m - 1, f
    for i in sorted(range(m), key=lambda i: (scores[i], i), reverse=True):
        if not left >> i & 1:
            continue
        leaving, near = 1 << i, far[i] & left
        if near.bit_count() <= budget and not (budget and _can_go(far, left ^ leaving, budget - 1)):
            leaving = near  # the row stays, so those far from it cannot
        left, budget = left ^ leaving, budget - leaving.bit_count()
    return list(_members(left))


def _least_diameter(distances: Array, radii: Array, f: int) -> float:
    """The least squared diameter of m - f rows.

    `radii` (m,) are squared distances to the (m - f)-th nearest, itself counted. The (m - f)-th least of
    them is a lower bound, the diameter of the m - f rows with the least of them an upper one.
    """
    kept = radii.argsort(kind="stable")[: len(radii) - f]
    low, high = radii[kept[-1]] * (1 - EQUAL), distances[np.ix_(kept, kept)].max()
    lengths = np.unique(distances[(distances >= low) & (distances <= high)]).tolist()
    everyone = 2 ** len(radii) - 1
    least = bisect_left(
        lengths[:-1], True, key=lambda length: _can_go(_far(distances, length), everyone, f)
    )
    return float(lengths[least])


def _far(distances: Array, length: float) -> list[int]:
    """For each row the set of those farther from it than this, as an integer with bit i for row i."""
    far = np.packbits(distances > length * (1 + EQUAL), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in far]


def _members(rows: int) -> Iterator[int]:
    """The rows of a set."""
    while rows:
        lowest = rows & -rows
        yield lowest.bit_length() - 1
        rows ^= lowest


def _can_go(far: list[int], left: int, budget: int) -> bool:
    """Whether `budget` of these rows cover all far pairs among them: a search for a vertex cover."""
    while True:
        degrees = [(row & left).bit_count() if left >> i & 1 else 0 for i, row in enumerate(far)]
        degree = max(degrees)
        if degree <= 2:
            return _least_cover(far, left) <= budget
        if degree <= budget:
            break
        if budget == 0:
            return False
        # This row must go: its neighbours alone are more than the budget.
        left, budget = left ^ 1 << degrees.index(degree), budget - 1
    if 2 * sum(nlargest(budget, degrees)) < sum(degrees):
        return False  # not even the rows with the most pairs cover all
    worst = degrees.index(degree)
    if _can_go(far, left ^ 1 << worst, budget - 1):
        return True
    return _can_go(far, left & ~far[worst], budget - degree)


def _least_cover(far: list[int], left: int) -> int:
    """The size of the least vertex cover where no row has more than two pairs: paths and rings of k pairs.

    Of each it takes half of the pairs, rounded up.
    """
    fewest = 0
    left = sum(1 << i for i in _members(left) if far[i] & left)
    while left:
        component = front = left & -left
        while front:
            reached = 0
            for i in _members(front):
                reached |= far[i] & left
            front = reached & ~component
            component |= reached
        pairs = sum((far[i] & component).bit_count() for i in _members(component)) // 2
        fewest += (pairs + 1) // 2
        left &= ~component
    return fewest
