"""The geometry of n vectors about a reference: all that a rule needs to know of them.

    n  vectors in the basis      m  points expressed in it

Everything is float64 on the CPU. The basis holds the inner products of (x_1 - r, ..., x_n - r, r); a point
is a row of n+1 coordinates, so x_i = [e_i | 1] and r = [0 | 1]. A mixing multiplies coordinates and
never touches the d columns again.

What a rule sees are tensors. Inside they are arrays: a call on so few numbers is all overhead, and numpy
has a third of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.algebra import Array, product
from varangian.aggregators.kernels import Backend, backend_for
from varangian.aggregators.rows import Rows

T = TypeVar("T")

ROUNDING = 1e-14
"""Of a squared distance over the sum of the squared norms: less is rounding, and the points coincide."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The inner products of (x_1 - r, ..., x_n - r, r), measured when the first rule asks for them."""

    measure: Callable[[], Tensor]

    @property
    def measured(self) -> bool:
        """Whether a rule has asked yet."""
        return "products" in vars(self)

    @cached_property
    def products(self) -> Tensor:
        """(n+1, n+1)."""
        return self.measure()


@dataclass(frozen=True, eq=False)
class Gram:
    """m points, known by their inner products."""

    basis: Basis
    coords: Tensor  # (m, n+1)
    _known: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], init=False, repr=False)

    @classmethod
    def of(cls, rows: Rows, reference: Tensor | None = None, backend: Backend | None = None) -> Gram:
        """The rows themselves; they are measured once, the only O(n^2 d) work of a round."""
        measure = (backend or backend_for(rows)).gram
        return cls.about(lambda: measure(rows, reference), len(rows))

    @classmethod
    def about(cls, measure: Callable[[], Tensor], n: int) -> Gram:
        """The n points of a basis, whose inner products `measure` returns: (n+1, n+1)."""
        return cls(Basis(measure), _themselves(n))

    def __len__(self) -> int:
        return self.coords.shape[0]

    def mixed(self, mixing: Tensor) -> Gram:
        """The points `mixing @ points`; (k, m), or (k, m+1) with the reference last."""
        return Gram(self.basis, self.combination(mixing))

    def combination(self, weights: Tensor) -> Tensor:
        """Coordinates of weighted sums of the points: (..., m) or (..., m+1) -> (..., n+1)."""
        m, given = len(self), weights.numpy()
        coords = given[..., :m] @ self.coords.numpy()
        if given.shape[-1] == m + 1:
            coords[..., -1] += given[..., m]
        return torch.from_numpy(coords)

    @cached_property
    def inner(self) -> Tensor:
        """<y_i, y_j> about the origin, (m, m)."""
        return _products(self.coords.numpy(), self.basis)

    @cached_property
    def norms(self) -> Tensor:
        """|y_i|, (m,)."""
        return torch.from_numpy(np.sqrt(np.maximum(self.inner.numpy().diagonal(), 0)))

    @cached_property
    def centered(self) -> Tensor:
        """<y_i - r, y_j - r> about the reference, (m, m)."""
        offsets = self.coords.numpy().copy()
        offsets[:, -1] -= 1
        return _products(offsets, self.basis)

    @cached_property
    def sqdist(self) -> Tensor:
        """|y_i - y_j|^2, (m, m): about the reference, so that a large common part cancels first."""
        inner = self.centered.numpy()
        squares = inner.diagonal()
        scale = squares[:, None] + squares
        distances = scale - 2 * inner
        distances = np.where(distances > ROUNDING * scale, distances, 0.0)
        np.fill_diagonal(distances, 0)
        return torch.from_numpy(distances)

    def sqdist_to(self, weights: Tensor) -> Tensor:
        """|y_i - z|^2 for z the combination with these weights, (m,) or (m+1,) -> (m,)."""
        offsets = (self.coords - self.combination(weights)).numpy()
        squares = ((offsets @ self.basis.products.numpy()) * offsets).sum(axis=1)
        return torch.from_numpy(np.maximum(squares, 0))

    def spread(self, point: Tensor) -> float | None:
        """Mean squared distance of the rows to the point with these coordinates; None if not measured."""
        if not self.basis.measured:
            return None
        inner, offset = self.basis.products.numpy(), point.numpy().copy()
        offset[-1] -= 1  # from the reference
        along = inner @ offset
        crossed = inner.diagonal()[:-1].sum() - 2 * along[:-1].sum()
        return max(0.0, float(crossed / (len(point) - 1) + offset @ along))

    def remembered(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` returned for the key before: for what weights and their explanation both need."""
        if key not in self._known:
            self._known[key] = find()
        return cast("T", self._known[key])


def _themselves(n: int) -> Tensor:
    """The coordinates of the n rows."""
    coords = np.eye(n, n + 1)
    coords[:, -1] = 1
    return torch.from_numpy(coords)


def _products(coords: Array, basis: Basis) -> Tensor:
    return torch.from_numpy(product(product(coords, basis.products.numpy()), coords.T))


def shares(m: int, chosen: Sequence[int] | NDArray[np.intp]) -> Tensor:
    """Weights (m,) of the mean of the chosen points."""
    weights = np.zeros(m)
    weights[chosen] = 1 / len(chosen)
    return torch.from_numpy(weights)


def typical(lengths: Array) -> float:
    """The median, the midpoint of the middle two if need be: where an honest majority keeps it."""
    ordered, m = np.sort(lengths), len(lengths)
    return float(ordered[(m - 1) // 2] + (ordered[m // 2] - ordered[(m - 1) // 2]) / 2)


def factors(lengths: Array, longest: float) -> Array:
    """What lengths are multiplied by so that none is more than `longest`: (m,), at most 1."""
    return np.divide(longest, lengths, out=np.ones(len(lengths)), where=lengths > longest)


def inverses(lengths: Array) -> Array:
    """1 / length, and 0 for what has none: (m,)."""
    return np.divide(1, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
