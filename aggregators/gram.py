"""The geometry of n vectors about a reference: all that a rule needs to know of them.

    n  vectors in the basis      m  points expressed in it

Everything is float64 on the CPU. The basis holds the inner products of (x_1 - r, ..., x_n - r, r); a point
is a row of n+1 coordinates, so x_i = [e_i | 1] and r = [0 | 1]. A mixing multiplies coordinates and
never touches the d columns again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from varangian.aggregators.kernels import Backend, backend_for
from varangian.aggregators.rows import Rows

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
        m = len(self)
        coords = weights[..., :m] @ self.coords
        if weights.shape[-1] == m + 1:
            coords[..., -1] += weights[..., m]
        return coords

    @cached_property
    def inner(self) -> Tensor:
        """<y_i, y_j> about the origin, (m, m)."""
        return _products(self.coords, self.basis)

    @cached_property
    def norms(self) -> Tensor:
        """|y_i|, (m,)."""
        return self.inner.diagonal().clamp(min=0).sqrt()

    @cached_property
    def centered(self) -> Tensor:
        """<y_i - r, y_j - r> about the reference, (m, m)."""
        offsets = self.coords.clone()
        offsets[:, -1] -= 1
        return _products(offsets, self.basis)

    @cached_property
    def sqdist(self) -> Tensor:
        """|y_i - y_j|^2, (m, m): about the reference, so that a large common part cancels first."""
        squares = self.centered.diagonal()
        scale = squares[:, None] + squares[None, :]
        distances = scale - 2 * self.centered
        return torch.where(distances > ROUNDING * scale, distances, 0.0).fill_diagonal_(0)

    def sqdist_to(self, weights: Tensor) -> Tensor:
        """|y_i - z|^2 for z the combination with these weights, (m,) or (m+1,) -> (m,)."""
        return self.squares(self.coords - self.combination(weights))

    def spread(self, point: Tensor) -> float | None:
        """Mean squared distance of the rows to the point with these coordinates; None if not measured."""
        if not self.basis.measured:
            return None
        rows = _themselves(len(point) - 1)
        return float(self.squares(rows - point).mean())

    def squares(self, coords: Tensor) -> Tensor:
        """Squared norms of the vectors with these coordinates: (k, n+1) -> (k,)."""
        return ((coords @ self.basis.products) * coords).sum(dim=1).clamp(min=0)


def _themselves(n: int) -> Tensor:
    """The coordinates of the n rows."""
    return torch.cat([torch.eye(n), torch.ones(n, 1)], dim=1).double()


def _products(coords: Tensor, basis: Basis) -> Tensor:
    return coords @ basis.products @ coords.T


def typical(lengths: Tensor) -> Tensor:
    """The median, the midpoint of the middle two if need be: where an honest majority keeps it."""
    return lengths.quantile(0.5)


def inverses(lengths: Tensor) -> Tensor:
    """1 / length, and 0 for what has none: (m,)."""
    return torch.where(lengths > 0, 1 / lengths, 0.0)
