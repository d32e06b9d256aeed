"""The Gram matrix of rows of which only a few change between two rounds: k n d work instead of n^2 d.

n  rows     k  of them replaced since the last time     d  columns     r  the reference, another each time

The inner products of the rows about the origin are kept, because the origin stays where it is; those with r
are measured anew each time, as of one more row. Products with a replaced row are measured anew and never
corrected by a difference, so that a row leaves no rounding error behind, however large it was. There are
three precisions, chosen by how much the rows have in common:

    quick  float32 products of short blocks, added up in float64, where that keeps the distance of a pair
    exact  float64, for the pairs whose distances it does not keep, or for all if that is to be expected
    fresh  all rows about r, once they lie so close to it that even float64 about the origin loses them

Squared norms are always in float64. So the error of a squared distance is below 1e-5 of it, or below 1e-13
of the squared norms about the origin or r where two rows almost coincide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.gram import typical
from varangian.aggregators.kernels import NotFinite, backend_for, blocked, centres
from varangian.aggregators.rows import Rows, RowsError

FAR = 1e-9
"""Of the squared distance of a typical row to r over its squared norm: float64 errs by 1e-5 below it."""
MARGIN = 2
"""Safety factor over the precision of float32, below which it is not tried."""
ENTRIES = 1 << 20
"""Of a block that is converted to float64: it stays in cache."""
WIDTH = 1 << 12
"""Columns of one float32 product, for which `centres.KEPT` is enough; errors of several are independent."""
STRIP = 1 << 15
"""Entries of one row whose squares are added up at once."""


def worthwhile(n: int, k: int) -> bool:
    """Whether k replaced rows of n are few enough that this is faster than measuring all of them.

    Measured on one thread, with the compiled kernels and without.
    """
    return n >= 40 + 8 * k


class UpdatedGram:
    """The inner products of n rows, asked for again and again while some of the rows are replaced.

    The same replacements between the same questions give the same bits, in whatever order they came.
    """

    def __init__(self, n: int) -> None:
        self._inner = torch.zeros(n, n, dtype=torch.float64, device="cpu")
        self._replaced = set(range(n))
        self._share = 1.0

    def mark_replaced(self, row: int) -> None:
        """Say that this row is another one now, or was written to."""
        if not 0 <= row < len(self._inner):
            raise RowsError(f"`row` should be one of {len(self._inner)} rows. Found {row}.")
        self._replaced.add(row)

    def products(self, rows: Rows, reference: Tensor | None = None) -> Tensor:
        """Inner products of (x_1 - r, ..., x_n - r, r), as `gram` of a backend: (n+1, n+1) float64.

        Args:
            rows: all n; those that were not marked as replaced since the last time are as they were.
            reference: r, (d,); zero if None.

        Raises:
            RowsError: not n rows.
            NotFinite: a replaced row is not finite. It counts as replaced until it is.
        """
        n = len(self._inner)
        if len(rows) != n:
            raise RowsError(f"`rows` should be {n} rows, as at first. Found {len(rows)}.")
        points = _Points(rows, reference)
        chosen = sorted(self._replaced)
        measured = self._measure(points, chosen if reference is None else [*chosen, n])
        self._keep(chosen, measured[: len(chosen)])
        products = _move_origin(self._inner, measured[len(chosen) :])
        self._share = _share(self._inner, products)
        return backend_for(rows).gram(rows, reference) if self._share < FAR else products

    def state(self) -> dict[str, Any]:
        """All that later answers depend on besides the rows; the tensor is changed by the next question."""
        return {"inner": self._inner, "replaced": sorted(self._replaced), "share": self._share}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with the same bits.

        Raises:
            RowsError: it is of another number of rows.
        """
        if state["inner"].shape != self._inner.shape:
            n, found = len(self._inner), len(state["inner"])
            raise RowsError(f"`state` should be of {n} rows. Found {found}.")
        self._inner.copy_(state["inner"])
        self._replaced, self._share = set(state["replaced"]), float(state["share"])

    def _keep(self, chosen: list[int], measured: Tensor) -> None:
        self._inner[chosen] = measured[:, :-1]
        self._inner[:, chosen] = measured[:, :-1].T
        self._replaced.clear()

    def _measure(self, points: _Points, chosen: list[int]) -> Tensor:
        """Inner products of the chosen points with all rows, and their squared norms: (k, n+1)."""
        n = len(self._inner)
        squares = points.squares(chosen)
        if not bool(squares.isfinite().all()):
            raise NotFinite
        inside = [i for i in chosen if i < n]
        dtype = points.rows.working_dtype if self._may_be_quick(points) else torch.float64
        cross = _symmetric(points.cross(chosen, range(n), dtype), inside)
        if dtype is not torch.float64:
            of_rows = self._inner.diagonal().index_copy(
                0, torch.tensor(inside, dtype=torch.long, device="cpu"), squares[: len(inside)]
            )
            lost = _imprecise(cross, squares, of_rows, points)
            lost[range(len(inside)), inside] = False  # the distance of a point to itself
            _remeasure(cross, lost, points, chosen)
            cross = _symmetric(cross, inside)
        cross[range(len(inside)), inside] = squares[: len(inside)]
        return torch.column_stack([cross, squares])

    def _may_be_quick(self, points: _Points) -> bool:
        """Whether float32 products can be expected to keep the distances of most pairs."""
        return blocked.refuses(points.rows) is None and self._share > MARGIN * points.least_share


@dataclass(frozen=True, eq=False)
class _Points:
    """The rows, and the reference as point n."""

    rows: Rows
    reference: Tensor | None

    @property
    def least_share(self) -> float:
        """Of a squared distance over the sum of the squared norms, what float32 products have to leave."""
        return centres.KEPT / math.sqrt(math.ceil(self.rows.d / WIDTH))

    @cached_property
    def _lying(self) -> tuple[Tensor, list[int]] | None:
        return _matrix_of(self.rows)

    def squares(self, chosen: Sequence[int]) -> Tensor:
        """Squared norms, (k,)."""
        return torch.stack(
            [_square(self._point(i)) for i in chosen] or [torch.zeros(0, dtype=torch.float32, device="cpu")]
        ).cpu()

    def cross(self, left: Sequence[int], right: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Inner products of k points with m rows, in products of this type: (k, m)."""
        lying = self._lying if len(right) == len(self.rows) else None
        matrix, places = lying or (None, [*range(len(right))])
        width = max(places) + 1
        total = torch.zeros(len(left), width, dtype=torch.float64, device=self.rows.device)
        for columns in self._columns(width, dtype):
            block = self._block(right, columns, dtype) if matrix is None else matrix[:, columns].to(dtype)
            total += self._block(left, columns, dtype) @ block.T
        return total[:, places].cpu()

    def _columns(self, points: int, dtype: torch.dtype) -> list[slice]:
        wide = max(1 << 10, min(1 << 13, ENTRIES // max(points, 1)))
        width = wide if dtype is torch.float64 else WIDTH
        return [slice(start, start + width) for start in range(0, self.rows.d, width)]

    def _block(self, chosen: Sequence[int], columns: slice, dtype: torch.dtype) -> Tensor:
        """The columns of k points: (k, b)."""
        pieces = [self._point(i)[columns] for i in chosen]
        out = torch.empty(len(pieces), len(pieces[0]), dtype=dtype, device=self.rows.device)
        for row, piece in zip(out, pieces, strict=True):
            row.copy_(piece)
        return out

    def _point(self, i: int) -> Tensor:
        if i < len(self.rows):
            return self.rows.vectors[i]
        assert self.reference is not None
        return self.reference


def _square(point: Tensor) -> Tensor:
    """The squared norm of a row, in float64."""
    strips = (strip.double() for strip in point.split(STRIP))
    return torch.stack([torch.dot(strip, strip) for strip in strips]).sum()


def _matrix_of(rows: Rows) -> tuple[Tensor, list[int]] | None:
    """The part of a storage in which the rows lie as a matrix, in whatever order, and in which of its rows.

    None where they do not, or where others lie between them.
    """
    first = min(rows.vectors, key=Tensor.data_ptr)
    storage, item = first.untyped_storage().data_ptr(), first.element_size()
    if any(v.untyped_storage().data_ptr() != storage or v.stride() != (1,) for v in rows.vectors):
        return None
    offsets = [(v.data_ptr() - first.data_ptr()) // item for v in rows.vectors]
    step = math.gcd(*offsets) or rows.d
    places = [offset // step for offset in offsets]
    if step < rows.d or max(places) >= 2 * len(rows):
        return None
    return first.as_strided((max(places) + 1, rows.d), (step, 1)), places


def _symmetric(cross: Tensor, inside: list[int]) -> Tensor:
    """(k, n), the products of the first of the k with each other made equal both ways."""
    among = cross[: len(inside), inside]
    cross[: len(inside), inside] = (among + among.T) / 2
    return cross


def _remeasure(cross: Tensor, lost: Tensor, points: _Points, chosen: list[int]) -> None:
    """Measure the marked products again, in float64 and in place."""
    left, right = lost.any(dim=1).nonzero().flatten(), lost.any(dim=0).nonzero().flatten()
    if len(left):
        again = [chosen[i] for i in left.tolist()]
        cross[left[:, None], right] = points.cross(again, right.tolist(), torch.float64)


def _imprecise(cross: Tensor, squares: Tensor, of_rows: Tensor, points: _Points) -> Tensor:
    """Which quick products are not precise enough: (k, n) bool."""
    scale = squares[:, None] + of_rows
    kept = (scale - 2 * cross >= points.least_share * scale) & cross.isfinite()
    # Products of a point this small underflow in float32, unless it is zero.
    small = (squares > 0) & (squares < blocked.FLOOR * points.rows.d)
    return ~kept | small[:, None]


def _move_origin(inner: Tensor, of_reference: Tensor) -> Tensor:
    """From products about the origin to those about the reference, of which (0 or 1, n+1) are given."""
    n = len(inner)
    products = torch.zeros(n + 1, n + 1, dtype=torch.float64, device="cpu")
    if len(of_reference) == 0:
        products[:n, :n] = inner
        return products
    along, square = of_reference[0, :n], of_reference[0, n]
    products[:n, :n] = inner - (along[:, None] + along) + square
    products[:n, n] = products[n, :n] = along - square
    products[n, n] = square
    products.diagonal().clamp_(min=0)  # rounding
    return products


def _share(inner: Tensor, products: Tensor) -> float:
    """The share of a typical nonzero row: its squared distance to the reference over its squared norm."""
    squares, distances = inner.diagonal().numpy(), products.diagonal()[:-1].numpy()
    there = squares > 0
    return typical(distances[there] / squares[there]) if np.any(there) else 1.0
