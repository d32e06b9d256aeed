"""The Gram matrix of the rows: all that a rule needs to know of n vectors of any length.

    n  vectors in the basis      m  points expressed in it

Everything is float64 on the CPU. The basis holds the inner products of (x_1, ..., x_n, r, 0), each taken
from one centre, which may lie anywhere: the nearer to the rows, the more digits distances have. A point is
an affine combination of them, a row of n+2 coordinates whose sum is 1: differences of points have
coordinates of sum 0, and the centre cancels. A mixing multiplies coordinates and never touches the d
columns again.

Rules see tensors. Inside are numpy arrays: on so few numbers the overhead of a call decides, and numpy's is
a third of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.kernels import Backend, NotFinite, backend_for
from varangian.aggregators.numeric.algebra import Array, product
from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.numeric.timing import part
from varangian.aggregators.rows import Rows

T = TypeVar("T")

ROUNDING = 1e-14
"""Squared distance of two points, over the sum of their squared distances to the centre, below which they
coincide."""
DOUBLE, SINGLE = 1e-14, 1e-7
"""Relative rounding of inner products of float64 rows, and of narrower ones."""
ORIGIN = -1
"""The place of zero in the basis."""
REFERENCE = -2
"""The place of the reference in the basis."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The inner products of the rows, the reference and the origin, measured when the first rule asks.

    `measure` returns those of (x_1 - c, ..., x_n - c, r - c, -c) for some centre c, (n+2, n+2), or those of
    (x_1 - r, ..., x_n - r, r), (n+1, n+1), where the reference is the centre.
    """

    measure: Callable[[], Tensor]
    n: int
    precision: float = DOUBLE
    """Rounding of the inner products, relative to the lengths of both vectors."""

    @property
    def measured(self) -> bool:
        """Whether the inner products have been computed."""
        return "products" in vars(self)

    @cached_property
    def products(self) -> Tensor:
        """(n+2, n+2)."""
        with part("gram"):
            found = self.measure()
        return found if len(found) == self.n + 2 else _with_origin(found)


@dataclass(frozen=True, eq=False)
class Gram:
    """m points, given by their inner products. All matrices are symmetric to the last bit."""

    basis: Basis
    coords: Tensor  # (m, n+2)
    unmixed: bool = False
    """Whether the points are the rows, all of them in their order."""
    shares: Shares | None = None
    """Weights of the points; None where all weigh the same."""
    _known: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], init=False, repr=False)

    @classmethod
    def of(cls, rows: Rows, reference: Tensor | None = None, backend: Backend | None = None) -> Gram:
        """The rows themselves; their inner products are the only O(n^2 d) work of a round."""
        measure = (backend or backend_for(rows)).centred
        return cls.about(lambda: measure(rows, reference), len(rows), precision_of(rows))

    @classmethod
    def about(cls, measure: Callable[[], Tensor], n: int, precision: float = DOUBLE) -> Gram:
        """The n rows of a basis, whose inner products `measure` returns."""
        return cls(
            Basis(measure, n, precision),
            torch.eye(n, n + 2, dtype=torch.float64, device="cpu"),
            unmixed=True,
        )

    @classmethod
    def from_origin(cls, rows: Rows, reference: Tensor | None = None) -> Gram:
        """The rows, measured from the origin in float64: the shortest keep their lengths and directions."""
        return cls.about(lambda: _from_origin(rows, reference), len(rows))

    def __len__(self) -> int:
        return self.coords.shape[0]

    def mixed(self, mixing: Tensor) -> Gram:
        """The points `mixing @ points`; (k, m), or (k, m+1) with the reference last."""
        return Gram(self.basis, self.combination(mixing), shares=self.shares)

    def weighted(self, shares: Shares | None) -> Gram:
        """The same points with these weights, which mixings that keep points in their places pass on."""
        return self if shares is None else replace(self, shares=shares)

    def combination(self, weights: Tensor) -> Tensor:
        """Coordinates of weighted sums of the points: (..., m) or (..., m+1) -> (..., n+2)."""
        m, given = len(self), weights.numpy()
        coords = given[..., :m] @ self.coords.numpy()
        if given.shape[-1] == m + 1:
            coords[..., REFERENCE] += given[..., m]
        rest = 1 - coords[..., :ORIGIN].sum(axis=-1)
        # Of an affine combination nothing is left for the origin but rounding.
        negligible = np.abs(rest) < 1e-12 * (1 + np.abs(coords[..., :ORIGIN]).sum(axis=-1))
        coords[..., ORIGIN] = np.where(negligible, 0.0, rest)
        return torch.from_numpy(coords)

    @cached_property
    def inner(self) -> Tensor:
        """<y_i, y_j> about the origin, (m, m)."""
        return torch.from_numpy(self._products(ORIGIN))

    @cached_property
    def norms(self) -> Tensor:
        """|y_i|, (m,)."""
        return torch.from_numpy(np.sqrt(np.maximum(self.inner.numpy().diagonal(), 0)))

    @cached_property
    def centered(self) -> Tensor:
        """<y_i - r, y_j - r> about the reference, (m, m)."""
        return torch.from_numpy(self._products(REFERENCE))

    @cached_property
    def relative(self) -> Tensor:
        """<y_i - c, y_j - c> about a centre c close to the points, (m, m): for translation-invariant rules.

        Differences of the points keep all their digits where the reference or the origin is far away, also
        after a mixing that moved most points towards it.
        """
        return torch.from_numpy(self._products(None))

    @cached_property
    def towards(self) -> Tensor:
        """<y_i, r> about the origin, (m,)."""
        return torch.from_numpy(self._from(ORIGIN) @ self.basis.products.numpy() @ self._reference())

    @property
    def reference_norm(self) -> float:
        """|r|; 0 where there is no reference."""
        along = self._reference()
        return float(np.sqrt(max(0.0, along @ self.basis.products.numpy() @ along)))

    @cached_property
    def sqdist(self) -> Tensor:
        """|y_i - y_j|^2, (m, m): about the centre of the basis, where a large common part has cancelled."""
        inner = self.relative.numpy()
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
        n, inner, place = self.basis.n, self.basis.products.numpy(), point.numpy()
        along = inner @ place
        crossed = inner.diagonal()[:n].sum() - 2 * along[:n].sum()
        return max(0.0, float(crossed / n + place @ along))

    def _from(self, place: int | None) -> Array:
        """Coordinates of the points relative to one of the basis, or to a centre near them: (m, n+2)."""
        offsets = self.coords.numpy().copy()
        if place is not None:
            offsets[:, place] -= 1
            return offsets
        # The centre: a typical point has no share of the reference or the origin.
        for far in (REFERENCE, ORIGIN):
            offsets[:, far] -= typical(offsets[:, far])
        return offsets

    def _products(self, place: int | None) -> Array:
        """Inner products of the points relative to a place, as in `_from`: (m, m)."""
        products = self.basis.products.numpy()
        if self.unmixed and place is None:
            # Multiplied by ones and zeros, the products stay what they are.
            products = products[: len(self), : len(self)] + 0.0
        else:
            offsets = self._from(place)
            products = product(product(offsets, products), offsets.T)
        symmetric: Array = (products + products.T) / 2
        return symmetric

    def _reference(self) -> Array:
        """Coordinates of the reference relative to the origin, (n+2,)."""
        along = np.zeros(self.basis.n + 2)
        along[[REFERENCE, ORIGIN]] = 1, -1
        return along

    def remembered(self, key: Hashable, find: Callable[[], T]) -> T:
        """The cached result of `find` for a key, for what weights and their explanation both need."""
        if key not in self._known:
            self._known[key] = find()
        return cast("T", self._known[key])


def _with_origin(products: Tensor) -> Tensor:
    """From products of (x_1 - r, ..., x_n - r, r) to those of (x_1 - r, ..., x_n - r, r - r, -r)."""
    n = len(products) - 1
    found = torch.zeros(n + 2, n + 2, dtype=torch.float64, device="cpu")
    found[:n, :n] = products[:n, :n]
    found[:n, ORIGIN] = found[ORIGIN, :n] = -products[:n, n]
    found[ORIGIN, ORIGIN] = products[n, n]
    return found


def _from_origin(rows: Rows, reference: Tensor | None) -> Tensor:
    """Inner products of (x_1, ..., x_n, r, 0), with subnormal numbers as zero: (n+2, n+2)."""
    n, least = len(rows), rows.least_normal
    total = torch.zeros(n + 2, n + 2, dtype=torch.float64, device=rows.device)
    for columns, block in rows.blocks(dtype=torch.float64):
        points = block.new_zeros(n + 2, block.shape[1])
        points[:n] = block.masked_fill(block.abs() < least, 0)
        if reference is not None:
            points[REFERENCE] = reference[columns].to(block)
        total += points @ points.T
    if not bool(total.isfinite().all()):
        raise NotFinite
    return total.cpu()


def precision_of(rows: Rows) -> float:
    """Rounding of inner products of such rows, relative to the lengths of both."""
    return DOUBLE if rows.working_dtype == torch.float64 else SINGLE


def mean_weights(m: int, chosen: Sequence[int] | NDArray[np.intp]) -> Tensor:
    """Weights (m,) of the mean of the chosen points."""
    weights = np.zeros(m)
    weights[chosen] = 1 / len(chosen)
    return torch.from_numpy(weights)


def typical(lengths: Array) -> float:
    """The median; of an even number the midpoint of the middle two. An honest majority bounds it."""
    ordered, m = np.sort(lengths), len(lengths)
    return float(ordered[(m - 1) // 2] + (ordered[m // 2] - ordered[(m - 1) // 2]) / 2)


def factors(lengths: Array, longest: float) -> Array:
    """Factors of at most 1 that limit lengths to `longest`: (m,) -> (m,)."""
    return np.divide(longest, lengths, out=np.ones(len(lengths)), where=lengths > longest)


def inverses(lengths: Array) -> Array:
    """1 / length, and 0 where the length is 0: (m,) -> (m,)."""
    return np.divide(1, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
