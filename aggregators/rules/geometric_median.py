"""The geometric median."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, check_positive, honest_majority, light_minority
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.algebra import Array, product, solve
from varangian.aggregators.numeric.shares import HALF, Shares

SLOW = 0.1
"""Ratio of the squares of two steps in a row above which a step of Newton's method is tried."""


@RULES.register("rfa", convention="rfa", smoothing=1e-5, tolerance=1e-6, iterations=4)
@RULES.register("geometric_median")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian:
    """Geometric median: the point with the least sum of distances to the rows, by smoothed Weiszfeld.

    "Robust Aggregation for Federated Learning" (Pillutla et al., 2022). That paper's code takes a few steps
    from the mean, which one distant row can move anywhere. Here the iteration starts at the mean of the
    tightest majority, and each row is first tested for being the median itself, where Weiszfeld's weights
    are singular; steps of Newton's method speed up slow convergence. `rfa` is the paper's released code.
    Where rows have weights, each distance counts as often as its row.
    """

    convention: Literal["exact", "rfa"] = "exact"
    """To convergence, or a few steps as in RFA's code, which is not robust: after k steps a row at distance
    D still moves it by about D / (n - 1)^k."""
    smoothing: float = 1e-6
    """The least length that a distance counts for: a share of the radius of the tightest majority; for rfa
    in the units of the rows."""
    tolerance: float = 1e-9
    """Converged when a step is shorter than this share of the same radius; for rfa, when it lowers the sum
    of distances by less than this share."""
    iterations: int = 1000
    """Most steps."""

    def __post_init__(self) -> None:
        check_positive("smoothing", self.smoothing)
        check_positive("tolerance", self.tolerance)
        check_count("iterations", self.iterations)

    @property
    def robust(self) -> bool:
        return self.convention == "exact"

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def kappa(self, n: int, f: int) -> float | None:
        """4 (1 + f / (n - 2 f))^2, of "Fixing by Mixing" (Allouah et al., 2023)."""
        return 4 * (1 + f / (n - 2 * f)) ** 2 if self.robust else None

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, f)

    def weighted_kappa(self, shares: Shares, f: int) -> float | None:
        """4 (1 + B / (1 - 2 B))^2 with the weight budget B: that of rows split into equal copies."""
        budget = shares.budget(f)
        return 4 * (1 + budget / (1 - 2 * budget)) ** 2 if self.robust else None

    def __call__(self, gram: Gram) -> Tensor:
        weights = self._converged(gram) if self.convention == "exact" else self._released(gram)
        return torch.from_numpy(weights)

    def _converged(self, gram: Gram) -> Array:
        medians, counts = _rows_that_are_medians(gram), _counts(gram)
        if medians.any():
            if counts is not None:
                weighted: Array = medians * counts / (medians @ counts)
                return weighted
            return medians / int(medians.sum())
        weights, radius = _tightest_majority(gram)
        inner, shortest = gram.relative.numpy(), self.smoothing * radius
        last = np.inf
        for _ in range(self.iterations):
            place = _Place.of(inner, weights, shortest, counts)
            before, weights = weights, place.weiszfeld()
            step = weights - before
            moved = step @ inner @ step
            if moved <= (self.tolerance * radius) ** 2:
                break
            if moved > SLOW * last:
                newton = place.newton()
                if newton is not None and _Place.of(inner, newton, shortest, counts).cost < place.cost:
                    weights = newton
            last = moved
        return weights

    def _released(self, gram: Gram) -> Array:
        inner, counts = gram.relative.numpy(), _counts(gram)
        weights, before = np.full(len(gram), 1 / len(gram)), np.inf
        if gram.shares is not None:
            weights = gram.shares.p
        for _ in range(self.iterations):
            place = _Place.of(inner, weights, self.smoothing, counts)
            lengths = np.sqrt(place.squares)
            cost = float(lengths.sum() if counts is None else lengths @ counts)
            if before - cost < self.tolerance * cost:
                break
            before, weights = cost, place.weiszfeld()
        return weights


@dataclass(frozen=True, eq=False)
class _Place:
    """A point z = sum w_i y_i with sum w_i = 1, and how far it is from each y_i."""

    inner: Array  # (m, m)
    weights: Array  # (m,)
    along: Array
    """<y_i, z>, (m,)."""
    square: float
    """|z|^2."""
    squares: Array
    """|y_i - z|^2, (m,)."""
    shortest: float
    """The least length that a distance counts for; below it the cost is a parabola."""
    counts: Array | None
    """How often each row counts, (m,); None for once each."""

    @classmethod
    def of(cls, inner: Array, weights: Array, shortest: float, counts: Array | None) -> _Place:
        along = inner @ weights
        square = float(weights @ along)
        squares = np.maximum(inner.diagonal() - 2 * along + square, 0)
        return cls(inner, weights, along, square, squares, shortest, counts)

    @cached_property
    def pulls(self) -> Array:
        """1 / |y_i - z|, as often as each row counts."""
        lengths: Array = np.maximum(np.sqrt(self.squares), self.shortest)
        return 1 / lengths if self.counts is None else self.counts / lengths

    @property
    def cost(self) -> float:
        """Twice the sum of distances."""
        if self.counts is None:
            return float((self.squares * self.pulls + 1 / self.pulls).sum())
        return float((self.squares * self.pulls + self.counts**2 / self.pulls).sum())

    def weiszfeld(self) -> Array:
        """The weights of the next point by Weiszfeld's iteration, (m,)."""
        weights: Array = self.pulls / self.pulls.sum()
        return weights

    def newton(self) -> Array | None:
        """The weights of the next point by Newton's method, (m,); None where its system is singular.

        With v_i = z - y_i and p_i = 1 / |v_i| the gradient is sum p_i v_i, the Hessian sum p_i I -
        p_i^3 v_i v_i', and the step -sum a_i v_i, where (sum p) a_i - p_i^3 <v_i, sum a_j v_j> = p_i. A row
        that counts k times is k rows.
        """
        between = self.inner - self.along - self.along[:, None] + self.square
        cubes = self.pulls**3 if self.counts is None else self.pulls**3 / self.counts**2
        curved = np.where(self.squares > self.shortest**2, cubes, 0.0)
        system = -curved[:, None] * between
        system[np.diag_indices_from(system)] += self.pulls.sum()
        step = solve(system, self.pulls)
        if step is None:
            return None
        weights: Array = (1 - step.sum()) * self.weights + step
        return weights


def _rows_that_are_medians(gram: Gram) -> NDArray[np.bool_]:
    """Rows where zero is a subgradient of the sum of distances: (m,) bool.

    The unit vectors from such a row to all the others sum to no more than the number of its copies.
    """
    distances, counts = gram.sqdist.numpy(), _counts(gram)
    near = distances == 0
    sums = 1 / np.sqrt(np.where(near, np.inf, distances))
    if counts is not None:
        sums *= counts
    np.fill_diagonal(sums, -sums.sum(axis=1))
    squares = (product(sums, gram.relative.numpy()) * sums).sum(axis=1)
    found: NDArray[np.bool_] = np.sqrt(np.maximum(squares, 0)) <= _copies(near, counts) * (1 + 1e-9)
    return found


def _counts(gram: Gram) -> Array | None:
    return None if gram.shares is None else gram.shares.counts


def _copies(near: NDArray[np.bool_], counts: Array | None) -> Array:
    """How often the rows count that are the same as each row: (m,)."""
    found: Array = near.sum(axis=1) if counts is None else near @ counts
    return found


def _tightest_majority(gram: Gram) -> tuple[Array, float]:
    """Weights of the mean of the rows in the smallest ball about a row that holds a majority; its radius.

    An honest majority bounds the radius by the diameter of the honest rows, and one of them is in the ball.
    """
    m, distances = len(gram), gram.sqdist.numpy()
    if gram.shares is not None:
        return _tightest_half(distances, gram.shares)
    squares = np.partition(distances, m // 2, axis=1)[:, m // 2]
    centre = int(squares.argmin())
    weights = np.zeros(m)
    weights[distances[centre].argsort(kind="stable")[: m // 2 + 1]] = 1 / (m // 2 + 1)
    return weights, float(np.sqrt(squares[centre]))


def _tightest_half(distances: Array, shares: Shares) -> tuple[Array, float]:
    """As `_tightest_majority`, of the rows that have more than half of the weight."""
    order = np.argsort(distances, axis=1, kind="stable")
    last = (np.cumsum(shares.p[order], axis=1) > 1 - HALF).argmax(axis=1)
    farthest = np.take_along_axis(order, last[:, None], axis=1)
    squares = np.take_along_axis(distances, farthest, axis=1)[:, 0]
    centre = int(squares.argmin())
    inside, weights = order[centre, : last[centre] + 1], np.zeros(len(shares))
    weights[inside] = shares.p[inside] / shares.p[inside].sum()
    return weights, float(np.sqrt(squares[centre]))
