"""The Gram matrix of rows that arrive in pieces, measured while the rest is on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from varangian.aggregators.kernels import native, reference
from varangian.aggregators.kernels.dispatch import BACKENDS, Backend, BackendRefused, backend_for
from varangian.aggregators.rows import Rows, RowsError

SLICE = native.SLICE
"""Columns of which every block but the last is a multiple: every backend starts a new sum there."""


@runtime_checkable
class Accumulating(Backend, Protocol):
    """A backend that measures some of the columns at a time; `reference` says what its verbs mean."""

    def accumulated(self, total: Tensor, rows: Rows, reference: Tensor | None, /) -> Tensor: ...
    def settled(
        self, total: Tensor, reference: Tensor | None, d: int, whole: Callable[[], Rows], /
    ) -> Tensor: ...


def _accumulating(rows: Rows, name: str | None) -> Accumulating:
    chosen = backend_for(rows, name)
    if isinstance(chosen, Accumulating):
        return chosen
    if name is not None:
        raise BackendRefused(f"Backend {name!r} was requested, but it does not take rows in pieces.")
    others = (b for b in BACKENDS if isinstance(b, Accumulating) and b.refuses(rows) is None)
    return next(others)


class GramAccumulator:
    """Takes n rows (d,) as blocks of columns, in order; gives the bits of `backend.gram` of the whole.

    Rows that are removed leave no trace in what is between the others. The blocks are held, not copied, and
    not to be written to: where float32 kept too few bits the rows are read once more.
    """

    def __init__(
        self, n: int, d: int, reference: Tensor | None = None, *, backend: str | None = None
    ) -> None:
        if reference is not None and reference.shape != (d,):
            raise RowsError(f"`reference` should be ({d},). Found {tuple(reference.shape)}.")
        self._d = d
        self._reference = reference
        self._name = backend
        self._kept = list(range(n))
        self._pieces: list[list[Tensor]] = [[] for _ in range(n)]
        self._at = 0
        self._chosen: tuple[Accumulating, Tensor] | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of the n rows are left."""
        return tuple(self._kept)

    @property
    def columns(self) -> int:
        """How many columns have been taken."""
        return self._at

    def remove(self, row: int) -> None:
        """Leaves one row out, for good; one that is out already stays so."""
        if row in self._kept:
            self._kept.remove(row)
            self._pieces[row] = []

    def take(self, block: Sequence[Tensor | None]) -> None:
        """The next columns: n pieces (b,), with None for a row that will not come any more.

        Raises:
            RowsError: not n pieces, not equally long, or a length that is neither a multiple of `SLICE`
                nor all that is left.
            BackendRefused: the backend that was asked for does not take such rows.
        """
        n = len(self._pieces)
        if len(block) != n:
            raise RowsError(
                f"A block should have {n} pieces, with None for rows that are out. Found {len(block)}."
            )
        for i, piece in enumerate(block):
            if piece is None:
                self.remove(i)
        if not self._kept:
            return
        present = Rows.of([piece for i in self._kept if (piece := block[i]) is not None])
        self._check(present)
        for i, piece in zip(self._kept, present.vectors, strict=True):
            self._pieces[i].append(piece)
        blank = torch.zeros_like(present.vectors[0])
        taken = dict(zip(self._kept, present.vectors, strict=True))
        self._add(Rows(tuple(taken.get(i, blank) for i in range(n))))

    def _check(self, block: Rows) -> None:
        width, left = block.d, self._d - self._at
        if width > left or (width % SLICE and width != left):
            raise RowsError(
                f"A block should have a multiple of {SLICE} columns, or the {left} that are left. "
                f"Found {width}."
            )
        before = self._pieces[self._kept[0]][:1]
        if before and before[0].dtype != block.dtype:
            raise RowsError(
                f"A block should be {before[0].dtype}, as those before it. Found {block.dtype}."
            )

    def _add(self, rows: Rows) -> None:
        if self._chosen is None:
            self._chosen = _accumulating(rows, self._name), reference.nothing(rows)
        backend, total = self._chosen
        r = self._reference
        if r is not None:
            r = r[self._at : self._at + rows.d].to(device=rows.device, dtype=rows.working_dtype)
        backend.accumulated(total, rows, r)
        self._at += rows.d

    def products(self, whole: Sequence[Tensor] | None = None) -> Tensor:
        """Inner products of (x_1 - r, ..., x_m - r, r) for the m rows that are left: (m+1, m+1) float64.

        Args:
            whole: these m rows, if the caller has them in one piece each; copied together otherwise.

        Raises:
            RowsError: no row is left, or columns are missing.
            NotFinite: a row that is left may not be finite.
        """
        if not self._kept:
            raise RowsError("`rows` should hold at least one vector. Found none that was not removed.")
        if self._chosen is None or self._at < self._d:
            raise RowsError(f"All {self._d} columns should have been taken. Found {self._at}.")
        backend, total = self._chosen
        index = [*self._kept, -1]
        return backend.settled(total[index][:, index], self._reference, self._d, lambda: self._whole(whole))

    def _whole(self, rows: Sequence[Tensor] | None) -> Rows:
        if rows is not None:
            return Rows(tuple(rows))
        return Rows(tuple(torch.cat(self._pieces[i]) for i in self._kept))
