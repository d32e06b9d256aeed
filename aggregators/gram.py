"""The geometry of n vectors about a reference: all that a rule needs to know of them.

    n  vectors in the basis      m  points expressed in it

Everything is float64 on the CPU. The basis holds the inner products of (x_1 - r, ..., x_n - r, r); a point
is a row of n+1 coordinates, so x_i = [e_i | 1] and r = [0 | 1]. A mixing multiplies coordinates and
never touches the d columns again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from varangian.aggregators.kernels import Backend, backend_for
from varangian.aggregators.rows import Rows


@dataclass(frozen=True, eq=False)
class Gram:
    """m points, known by their inner products."""

    basis: Tensor  # (n+1, n+1)
    coords: Tensor  # (m, n+1)

    @classmethod
    def of(cls, rows: Rows, reference: Tensor | None = None, backend: Backend | None = None) -> Gram:
        """Measure the rows once; the only O(n^2 d) work of a round."""
        n = len(rows)
        basis = (backend or backend_for(rows)).gram(rows, reference)
        coords = torch.cat([torch.eye(n), torch.ones(n, 1)], dim=1)
        return cls(basis, coords.double())

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
        return self.coords @ self.basis @ self.coords.T

    @cached_property
    def norms(self) -> Tensor:
        """|y_i|, (m,)."""
        return self.inner.diagonal().clamp(min=0).sqrt()

    @cached_property
    def centered(self) -> Tensor:
        """<y_i - r, y_j - r> about the reference, (m, m)."""
        offsets = self._offsets(self.coords)
        return offsets @ self.basis @ offsets.T

    @cached_property
    def sqdist(self) -> Tensor:
        """|y_i - y_j|^2, (m, m): about the reference, so that a large common part cancels first."""
        squares = self.centered.diagonal()
        distances = (squares[:, None] + squares[None, :] - 2 * self.centered).clamp(min=0)
        return distances.fill_diagonal_(0)

    def sqdist_to(self, weights: Tensor) -> Tensor:
        """|y_i - z|^2 for z the combination with these weights, (m,) or (m+1,) -> (m,)."""
        difference = self.coords - self.combination(weights)
        return ((difference @ self.basis) * difference).sum(dim=1).clamp(min=0)

    @staticmethod
    def _offsets(coords: Tensor) -> Tensor:
        """Coordinates of y - r."""
        offsets = coords.clone()
        offsets[:, -1] -= 1
        return offsets
