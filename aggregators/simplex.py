"""Small convex programmes over nonnegative weights, by active sets: exact up to rounding.

n  points, known by their inner products K (n, n); how long they are does not matter
"""

from __future__ import annotations

import torch
from torch import Tensor

RANK = 1e-14
"""Of the largest eigenvalue of a matrix of cosines: the least that is told from rounding."""
SLOPE = 1e-13
"""Cosine below which a point is perpendicular to what is left."""
PATIENCE = 16
"""Exchanges per variable after which rounding must be what still drives them; about one is usual."""


def nearest_to_origin(products: Tensor) -> Tensor:
    """Weights of the point of least length in the convex hull: min w'Kw, w >= 0, sum w = 1; (n, n) -> (n,).

    With a further coordinate s for every point, the cone of the points (x_i, s) comes nearest to (0, s) at
    a multiple of (the wanted point, s), for any s > 0 (Haskell and Hanson, 1981). Least squares over a cone
    does not care how long its generators are, so that points of very different lengths do no harm.
    """
    squares = products.diagonal().clamp(min=0)
    shortest = squares.min()
    if shortest <= 0:
        return torch.nn.functional.one_hot(squares.argmin(), len(squares)).double()
    lengths = (squares + shortest).sqrt()
    cosines = (products + shortest) / lengths / lengths[:, None]
    weights = nonnegative(positive(cosines), shortest.sqrt() / lengths) / lengths * shortest.sqrt()
    return weights / weights.sum()


def to_dual_cone(products: Tensor, along: Tensor) -> Tensor:
    """Weights of the shortest steps after which vectors conflict with no point: (n, n), (k, n) -> (k, n).

    For a vector v with inner products `along` with the points X, v + X'u is its projection on the dual
    cone: the vectors whose inner product with no point is negative.
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    there = (lengths > 0).nonzero().flatten()
    steps = torch.zeros_like(along)
    if len(there) == 0:
        return steps
    kept = lengths[there]
    cosines = positive(products[there][:, there] / kept / kept[:, None])
    for i, slope in enumerate(-along[:, there] / kept):
        steps[i, there] = nonnegative(cosines, slope) / kept
    return steps


def positive(cosines: Tensor) -> Tensor:
    """The nearest positive definite matrix: what rounding took below zero would have no minimum."""
    values, vectors = torch.linalg.eigh((cosines + cosines.T) / 2)
    nearest: Tensor = vectors * values.clamp(min=RANK * float(values[-1])) @ vectors.T
    return nearest


def nonnegative(curvature: Tensor, slope: Tensor) -> Tensor:
    """The z >= 0 that minimises z'Az/2 - b'z, for a positive definite A with unit diagonal.

    Lawson and Hanson's active set method, "Solving Least Squares Problems" (1974), chapter 23.
    """
    z = torch.zeros_like(slope)
    free = torch.zeros_like(slope, dtype=torch.bool)
    enough = SLOPE * float(slope.abs().max())
    for _ in range(PATIENCE * len(slope)):
        down = (slope - curvature @ z).masked_fill(free, -torch.inf)
        enters = int(down.argmax())
        if float(down[enters]) <= enough:
            break
        free[enters] = True
        z, free = _settled(curvature, slope, z, free)
    return z


def _settled(curvature: Tensor, slope: Tensor, z: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """From a feasible z to the minimum over its free variables; one that reaches zero is free no more."""
    while bool(free.any()):
        wanted = torch.zeros_like(z)
        wanted[free] = torch.linalg.solve(curvature[free][:, free], slope[free])
        blocked = free & (wanted <= 0)
        if not bool(blocked.any()):
            return wanted, free
        shares = torch.where(blocked, z / (z - wanted), torch.inf)
        z = z + shares.min() * (wanted - z)
        free = (free & (z > 0)).index_fill(0, shares.argmin(), False)
        z = torch.where(free, z, 0.0)
    return z, free
