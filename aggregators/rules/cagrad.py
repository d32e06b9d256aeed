"""Conflict-averse gradient descent."""

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
    """Of all vectors within c times its length of the mean, the one that helps the worst-off row most.

    "Conflict-Averse Gradient Descent for Multi-task Learning" (Liu et al., 2021): g0 + c |g0| Gw / |Gw|,
    with g0 the mean and w in the simplex minimising <Gw, g0> + c |g0| |Gw|. With c = 0 it is the mean.
    Where Gw vanishes many directions are equally good; we then take the vector nearest to the mean that
    conflicts with no row, which lies within the same radius. For workers who are honest and disagree: one
    long Byzantine row owns the mean that all is about.
    """

    c: float = 0.5
    """Radius over the length of the mean."""
    rescale: Literal["none", "1/(1+c)", "1/(1+c^2)"] = "none"
    """Factor on the result; the authors' code offers both fractions, the paper has neither."""
    solver: Literal["exact", "cvxpy"] = "exact"
    """An active set method, exact to rounding, or a conic programme (needs the extra `convex`)."""

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
        """From the mean, as weights."""
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
    """Minimise <Gw, g0> + radius |Gw| over the simplex, for rows of which the longest has length 1."""

    products: Array  # K = G'G, (n, n)
    c: float
    precision: float = CANCELLED
    """What the products are rounded to, of the lengths of both rows."""

    @cached_property
    def along(self) -> Array:
        """Inner products of the rows with their mean, (n,)."""
        along: Array = self.products.mean(axis=1)
        return along

    @cached_property
    def mean_square(self) -> float:
        """Squared length of the mean; 0 when only rounding is left of it."""
        n = len(self.products)
        return 0.0 if self.cancels(np.full(n, 1 / n)) else float(self.along.mean())

    @cached_property
    def radius(self) -> float:
        return self.c * math.sqrt(self.mean_square)

    def length(self, weights: Array) -> float:
        """|Gw|."""
        return math.sqrt(max(float(weights @ self.products @ weights), 0.0))

    def end_to_end(self, weights: Array) -> float:
        """The length of Gw if all rows had one direction."""
        return float(weights @ np.sqrt(np.maximum(self.products.diagonal(), 0)))

    def cancels(self, weights: Array, rounding: float | None = None) -> bool:
        """Whether only rounding is left of Gw."""
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
    """Where a falling function crosses zero; the nearer end when it does not. Exact for a line."""
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
        # The Illinois rule: an end that stays for a second time counts half, or it might stay for ever.
        again = value * side > 0
        if value > 0:
            low, above, below = middle, value, below / 2 if again else below
        else:
            high, below, above = middle, value, above / 2 if again else above
        side = value
    return middle
