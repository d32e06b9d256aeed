"""The Gram matrix of rows that arrive in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from varangian.aggregators.kernels import native
from varangian.aggregators.kernels.centres import Sums, about_reference
from varangian.aggregators.kernels.dispatch import BACKENDS, Backend, BackendRefused, backend_for
from varangian.aggregators.rows import Rows, RowsError

SLICE = native.SLICE
"""Every block but the last has a multiple of so many columns: backends start a new sum there."""


@runtime_checkable
class Accumulating(Backend, Protocol):
    """A backend that takes some of the columns at a time; `reference` defines its functions."""

    def accumulate(self, sums: Sums, rows: Rows, reference: Tensor | None, /) -> Sums: ...
    def finish(
        self, sums: Sums, d: int, whole: Callable[[], Rows], reference: Tensor | None, /
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
    """Takes n rows (d,) as blocks of columns, in order; returns the bits of `backend.centred` of the whole.

    A row that is removed has no influence: the bits are those for the other rows alone. Where the sum of a
    pair may depend on other rows, as in libraries and where rows share a long common part, blocks are
    measured again after a removal. Blocks are held, not copied; do not write to them.
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
        self._backend: Accumulating | None = None
        self._sums: Sums | None = None
        self._of: list[int] = []
        """The rows that the sums are of."""
        self._measured = 0
        """How many of their pieces are in the sums."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of the n rows are left."""
        return tuple(self._kept)

    @property
    def columns(self) -> int:
        """The number of columns taken so far."""
        return self._at

    def remove(self, row: int) -> None:
        """Remove a row for good; without effect for one that is removed already."""
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
        self._at += present.d
        self._measure()

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

    def _measure(self) -> tuple[Accumulating, Sums]:
        """Add the new pieces of the rows that are left to the sums, or all pieces again if need be."""
        kept = list(self._kept)
        if self._sums is not None and self._of != kept:
            self._sums = self._sums.among([self._of.index(i) for i in kept]) if self._sums.alone else None
        pieces = list(zip(*(self._pieces[i] for i in kept), strict=True))
        if self._backend is None:
            self._backend = _accumulating(Rows(pieces[0]), self._name)
        if self._sums is None:
            self._sums, self._measured = Sums.nothing(Rows(pieces[0])), 0
        self._of = kept
        at = sum(len(block[0]) for block in pieces[: self._measured])
        for block in pieces[self._measured :]:
            rows = Rows(block)
            r = self._reference
            if r is not None:
                r = r[at : at + rows.d].to(device=rows.device, dtype=rows.working_dtype)
            self._backend.accumulate(self._sums, rows, r)
            at += rows.d
        self._measured = len(pieces)
        return self._backend, self._sums

    def products(self, whole: Sequence[Tensor] | None = None) -> Tensor:
        """Inner products of (x_1 - r, ..., x_m - r, r) for the m rows that are left: (m+1, m+1) float64.

        Args and errors as those of `centred`.
        """
        return about_reference(self.centred(whole))

    def centred(self, whole: Sequence[Tensor] | None = None) -> Tensor:
        """The inner products of (x_1 - c, ..., x_m - c, r - c, -c) for some centre c: (m+2, m+2) float64.

        Args:
            whole: these m rows, if the caller has each in one piece; otherwise they may be copied.

        Raises:
            RowsError: no row is left, or columns are missing.
            NotFinite: a row that is left may not be finite.
        """
        if not self._kept:
            raise RowsError("`rows` should hold at least one vector. Found none that was not removed.")
        if self._at < self._d:
            raise RowsError(f"All {self._d} columns should have been taken. Found {self._at}.")
        backend, sums = self._measure()
        return backend.finish(sums, self._d, lambda: self._whole(whole), self._reference)

    def _whole(self, rows: Sequence[Tensor] | None) -> Rows:
        if rows is not None:
            return Rows(tuple(rows))
        return Rows(tuple(torch.cat(self._pieces[i]) for i in self._kept))
