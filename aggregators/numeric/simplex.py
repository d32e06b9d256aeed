"""Small convex programmes over nonnegative weights, by active sets: exact up to rounding.

n  points, given by their inner products K (n, n); results do not depend on the scale of the points
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varangian.aggregators.numeric.algebra import Array, cholesky, eigh, product, solve

RANK = 1e-14
"""Share of the largest eigenvalue of a matrix of cosines in float64 below which one is rounding."""
DEFINITE = 1e4
"""Squared pivot of a matrix of cosines, over that share, above which it is certainly definite."""
SLOPE = 1e-13
"""Cosine below which a point is perpendicular to what is left."""
PATIENCE = 16
"""Most exchanges per variable, about one is usual; more come from rounding."""
GUESSES = 3
"""Exchanges of many variables at once that may fail to lower the number of wrong ones in a row."""

Free = NDArray[np.bool_]


def nearest_to_origin(products: Array) -> Array:
    """Weights of the point of least length in the convex hull: min w'Kw, w >= 0, sum w = 1; (n, n) -> (n,).

    With a further coordinate s for every point, the cone of the points (x_i, s) comes nearest to (0, s) at
    a multiple of (the wanted point, s), for any s > 0 (Haskell and Hanson, 1981). The solution
    does not depend on the lengths of the generators of a cone, so points may differ much in length.
    """
    squares = np.maximum(products.diagonal(), 0)
    shortest = squares.min()
    if shortest <= 0:
        return np.equal(np.arange(len(squares)), squares.argmin()).astype(np.float64)
    lengths = np.sqrt(squares + shortest)
    cosines = (products + shortest) / lengths / lengths[:, None]
    weights: Array = nonnegative(positive(cosines), np.sqrt(shortest) / lengths) / lengths
    weights /= weights.sum()
    return weights


def to_dual_cone(products: Array, along: Array, precision: float = RANK) -> Array:
    """Weights u of projections on the dual cone of the points: (n, n), (k, n) -> (k, n).

    For a vector v with inner products `along` with the points X, v + X'u is the nearest vector whose inner
    product with no point is negative.
    """
    lengths = np.sqrt(np.maximum(products.diagonal(), 0))
    there = np.flatnonzero(lengths)
    steps = np.zeros_like(along)
    if len(there) == 0:
        return steps
    kept = lengths[there]
    cosines = positive(products[np.ix_(there, there)] / kept / kept[:, None], precision)
    for i, slope in enumerate(-along[:, there] / kept):
        steps[i, there] = nonnegative(cosines, slope) / kept
    return steps


def positive(cosines: Array, rank: float = RANK) -> Array:
    """The nearest positive definite matrix, (n, n): rounding may have made eigenvalues negative."""
    symmetric: Array = (cosines + cosines.T) / 2
    factor = cholesky(symmetric)
    if factor is not None and factor.diagonal().min() ** 2 > DEFINITE * rank:
        return symmetric
    values, vectors = eigh(symmetric)
    return product(vectors * np.maximum(values, rank * values[-1]), vectors.T)


def nonnegative(curvature: Array, slope: Array) -> Array:
    """The z >= 0 that minimises z'Az/2 - b'z, for a positive definite A with unit diagonal."""
    found = _guess(curvature, slope)
    return _search(curvature, slope) if found is None else found


def _guess(curvature: Array, slope: Array) -> Array | None:
    """The minimum by block pivoting, where a few exchanges of all wrong variables find it; else None.

    Portugal, Judice and Vicente, "A comparison of block pivoting and interior-point
    algorithms for linear least squares problems with nonnegative variables" (1994).
    """
    enough = SLOPE * np.abs(slope).max()
    z, free = np.zeros_like(slope), np.zeros_like(slope, dtype=bool)
    fewest, guesses = len(slope) + 1, GUESSES
    while guesses:
        down = slope - curvature @ z
        wrong: Free = np.where(free, z < 0, down > enough)
        count = int(wrong.sum())
        if count == 0:
            # Where points nearly coincide the solution may be rounding alone.
            return z if not free.any() or np.abs(down[free]).max() <= enough else None
        fewest, guesses = (count, GUESSES) if count < fewest else (fewest, guesses - 1)
        free = free ^ wrong
        z = _minimum(curvature, slope, free)
    return None


def _search(curvature: Array, slope: Array) -> Array:
    """The minimum by an active set method, one variable after another.

    Lawson and Hanson's active set method, "Solving Least Squares Problems" (1974), chapter 23.
    """
    z, free = np.zeros_like(slope), np.zeros_like(slope, dtype=bool)
    enough = SLOPE * np.abs(slope).max()
    for _ in range(PATIENCE * len(slope)):
        down = np.where(free, -np.inf, slope - curvature @ z)
        enters = int(down.argmax())
        if down[enters] <= enough:
            break
        free[enters] = True
        z, free = _settle(curvature, slope, z, free)
    return z


def _minimum(curvature: Array, slope: Array, free: Free) -> Array:
    """The minimum over the free variables without the bound; the others are zero."""
    z = np.zeros_like(slope)
    found = solve(curvature[np.ix_(free, free)], slope[free])
    assert found is not None  # a principal part of a positive definite matrix
    z[free] = found
    return z


def _settle(curvature: Array, slope: Array, z: Array, free: Free) -> tuple[Array, Free]:
    """From a feasible z to the minimum over its free variables; those that reach zero are fixed there."""
    while free.any():
        wanted = _minimum(curvature, slope, free)
        blocked = free & (wanted <= 0)
        if not blocked.any():
            return wanted, free
        shares = np.divide(z, z - wanted, out=np.full_like(z, np.inf), where=blocked)
        z = z + shares.min() * (wanted - z)
        free = free & (z > 0)
        free[shares.argmin()] = False
        z = np.where(free, z, 0.0)
    return z, free
