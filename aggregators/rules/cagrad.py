"""CAGrad, conflict-averse gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric import conic
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.simplex import nearest_to_origin, to_dual_cone

CANCELLED = 1e-14
"""Squared length of a combination over that of its parts laid end to end: less is rounding."""
AGREES = 1e-14
"""Relative difference of squared lengths that is left to rounding."""
PATIENCE = 100
"""Points at which the search looks; about ten are usual."""


@RULES.register("cagrad")
@dataclass(frozen=True, kw_only=True)
class CAGrad:
    """CAGrad: near the mean, the vector whose least inner product with a row is the greatest.

    "Conflict-Averse Gradient Descent for Multi-task Learning" (Liu et al., 2021): g0 + c |g0| Gw / |Gw|,
    with g0 the mean and w in the simplex minimising <Gw, g0> + c |g0| |Gw|. With c = 0 it is the mean.
    Where Gw vanishes many directions are equally good; the result is then the vector nearest to the mean
    that conflicts with no row, which lies within the same radius. Made for honest workers with different
    objectives: it is not robust, as one long Byzantine row determines the mean.
    """

    c: float = 0.5
    """Radius of the ball about the mean, divided by the length of the mean."""
    rescale: Literal["none", "1/(1+c)", "1/(1+c^2)"] = "none"
    """Factor on the result: none in the paper; both fractions are in the authors' code."""
    solver: Literal["exact", "cvxpy"] = "exact"
    """An active set method, exact to rounding, or a conic solver (needs the extra `convex`)."""

    robust: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.c < float("inf"):
            raise ValueError(f"`c` should be non-negative and finite. Found {self.c}.")

    def requires(self, n: int, f: int) -> str | None:
        if self.solver == "cvxpy" and find_spec("cvxpy") is None:
            return "its solver needs cvxpy: install varangian[convex], or choose the solver `exact`"
        return None

    def __call__(self, gram: Gram) -> Tensor:
        factor = {"none": 1.0, "1/(1+c)": 1 / (1 + self.c), "1/(1+c^2)": 1 / (1 + self.c**2)}[self.rescale]
        inner = gram.inner.numpy()
        largest = inner.diagonal().max()
        precision = gram.basis.precision
        game = Game(inner / (largest if largest > 0 else 1.0), self.c, precision)
        return torch.from_numpy(factor * (1 / len(gram) + self._step(game, precision)))

    def _step(self, game: Game, precision: float) -> Array:
        """The step from the mean, as weights of the rows (n,)."""
        if game.radius == 0:
            return np.zeros_like(game.along)
        if self.solver == "exact":
            weights, rounding = game.minimum(), precision
        else:
            weights = conic.minimum(game.products, game.along, game.radius)
            rounding = max(conic.CANCELLED, precision)
        if game.cancels(weights, rounding):
            (steps,) = to_dual_cone(game.products, game.along[None], precision)
        else:
            steps = weights * (game.radius / game.length(weights))
        return cast("Array", steps)


@dataclass(frozen=True, eq=False)
class Game:
    """The convex programme of CAGrad: minimise <Gw, g0> + radius |Gw| over the simplex.

    The longest row should have length 1.
    """

    products: Array  # K = G'G, (n, n)
    c: float
    precision: float = CANCELLED
    """Precision of the inner products, relative to the lengths of both rows."""

    @cached_property
    def along(self) -> Array:
        """Inner products of the rows with their mean, (n,)."""
        along: Array = self.products.mean(axis=1)
        return along

    @cached_property
    def mean_square(self) -> float:
        """Squared length of the mean; 0 when it is zero to rounding."""
        n = len(self.products)
        return 0.0 if self.cancels(np.full(n, 1 / n)) else float(self.along.mean())

    @cached_property
    def radius(self) -> float:
        return self.c * math.sqrt(self.mean_square)

    def length(self, weights: Array) -> float:
        """|Gw|."""
        return math.sqrt(max(float(weights @ self.products @ weights), 0.0))

    def end_to_end(self, weights: Array) -> float:
        """The length that Gw would have if all rows had the same direction."""
        return float(weights @ np.sqrt(np.maximum(self.products.diagonal(), 0)))

    def cancels(self, weights: Array, rounding: float | None = None) -> bool:
        """Whether Gw is zero to rounding."""
        rounding = self.precision if rounding is None else rounding
        return self.length(weights) ** 2 <= rounding * self.end_to_end(weights) ** 2

    def minimum(self) -> Array:
        """The minimising weights.

        |Gw| is the least value of |Gw|^2 / (2 t) + t / 2, taken at t = |Gw|. For a given t, completing the
        square leaves the point of the hull nearest to -(t / radius) g0. So t squared is the root of a
        falling function of one variable: a line, as long as the nearest point stays on one face.
        """
        shortest = self._nearest(0.0)
        least = max(self.length(shortest) ** 2, self.precision * self.end_to_end(shortest) ** 2)
        if self.cancels(shortest) and self._excess(least) <= 0:
            return shortest
        return self._nearest(root(self._excess, least, 1.0))

    def _nearest(self, square: float) -> Array:
        """Weights of the point of the hull nearest to -(t / radius) g0, for t squared."""
        shift = math.sqrt(square) / self.radius
        crossed = shift * (self.along + self.along[:, None])
        return nearest_to_origin(self.products + crossed + shift**2 * self.mean_square)

    def _excess(self, square: float) -> float:
        return self.length(self._nearest(square)) ** 2 - square


def root(falling: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function in [low, high] by regula falsi; an end where there is none.

    One step is enough for a straight line.
    """
    above, below = falling(low), falling(high)
    if above <= 0 or below >= 0:
        return low if above <= 0 else high
    side = 0.0
    middle = low
    for _ in range(PATIENCE):
        middle = (low * below - high * above) / (below - above)
        value = falling(middle)
        if abs(value) <= AGREES * middle or not low < middle < high:
            break
        # The Illinois rule: the value at an end that stays twice is halved, or it might stay for ever.
        again = value * side > 0
        if value > 0:
            low, above, below = middle, value, below / 2 if again else below
        else:
            high, below, above = middle, value, above / 2 if again else above
        side = value
    return middle
