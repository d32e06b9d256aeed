"""What can be done to columns before all of them are there, and what becomes of it.

n  rows that may come     d  columns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

from varangian.aggregators.base import (
    AggregationError,
    Columnwise,
    Weighting,
    is_columnwise,
    is_ordered,
    is_selecting,
)
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import GramAccumulator, backend_for
from varangian.aggregators.pipeline import Aggregator, on_rows
from varangian.aggregators.rows import Rows

How: TypeAlias = Columnwise | Tensor
"""How columns of the rows become the update's: by a rule, or by coefficients of (x_1, ..., x_n, r)."""


class Early(Protocol):
    """What can be done to columns before all of them are there."""

    @property
    def members(self) -> Sequence[int]:
        """The places of the rows that it holds for."""
        ...

    @property
    def alive(self) -> bool: ...
    def take(self, rows: Sequence[Tensor | None], start: int, stop: int) -> None: ...
    def remove(self, i: int) -> None: ...
    def measured(self, vectors: Sequence[Tensor]) -> Tensor: ...
    def ready(self, how: How) -> Tensor | None: ...


class Products:
    """Inner products: they hold for any part of the rows that they were begun with."""

    alive = True

    def __init__(self, accumulator: GramAccumulator, members: Sequence[int]) -> None:
        self._accumulator = accumulator
        for i in set(accumulator.kept) - set(members):
            accumulator.remove(i)

    @property
    def members(self) -> Sequence[int]:
        return self._accumulator.kept

    def take(self, rows: Sequence[Tensor | None], start: int, stop: int) -> None:
        # One that comes after all was not there before; it stays out.
        kept = self._accumulator.kept
        self._accumulator.take([_piece(rows[i], i in kept, start, stop) for i in range(len(rows))])

    def remove(self, i: int) -> None:
        self._accumulator.remove(i)

    def measured(self, vectors: Sequence[Tensor]) -> Tensor:
        return self._accumulator.centred(vectors)

    def ready(self, how: How) -> Tensor | None:
        return None


class Columns:
    """Finished columns of the update: they hold for exactly these rows."""

    def __init__(
        self,
        how: How,
        members: Sequence[int],
        d: int,
        reference: Tensor | None,
        backend: str | None,
        into: Tensor | None,
    ) -> None:
        self.members = members
        self.alive = True
        self._how = how
        self._d = d
        self._reference = reference
        self._backend = backend
        self._vector = into

    def take(self, rows: Sequence[Tensor | None], start: int, stop: int) -> None:
        pieces = [row[start:stop] for i in self.members if (row := rows[i]) is not None]
        if len(pieces) < len(self.members):
            self.alive = False
            return
        block = Rows.of(pieces)
        if self._vector is None:
            self._vector = torch.empty(self._d, dtype=block.dtype, device=block.device)
        reduce(self._how, block, self._reference, self._backend, self._vector, start)

    def remove(self, i: int) -> None:
        self.alive = self.alive and i not in self.members

    def measured(self, vectors: Sequence[Tensor]) -> Tensor:
        raise AssertionError("a rule that never looks at distances asked for them")

    def ready(self, how: How) -> Tensor | None:
        return self._vector if self._vector is not None and same(how, self._how) else None


def reduce(
    how: How, block: Rows, reference: Tensor | None, name: str | None, vector: Tensor, start: int
) -> None:
    """Columns of the update, from the same columns of the rows, which begin at `start`.

    Rows that are narrower than the vector are widened first: a mean of them needs more than they have.

    Raises:
        NotFinite: not by the kernels of this name, or by the fastest.
    """
    if block.dtype != vector.dtype:
        block = Rows(tuple(row.to(vector.dtype) for row in block.vectors))
    backend, stop = backend_for(block, name), start + block.d
    if isinstance(how, Tensor):
        part = None if reference is None else reference[start:stop]
        backend.combine(how[None], block, part, vector[None, start:stop])
        return
    by = how.order(len(block)) if is_ordered(how) else how.columnwise
    vector[start:stop] = backend.columnwise(by, None, block, None)


def known(aggregator: Aggregator, n: int, faults: int) -> How | None:
    """What becomes of n rows if that is known before anything is known of them; else None."""
    try:
        now = aggregator.among(range(n), faults)
    except AggregationError:
        return None
    if now.mix or is_selecting(now.rule):
        return None
    if is_columnwise(now.rule):
        return now.rule
    gram = Gram.about(_asked, n)
    try:
        return on_rows(gram.combination(cast("Weighting", now.rule)(gram)))
    except _Asked:
        return None


class _Asked(Exception):
    """The weights depend on the rows."""


def _asked() -> Tensor:
    raise _Asked


def same(a: How, b: How) -> bool:
    """Whether both make the same of the same columns."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b


def _piece(row: Tensor | None, kept: bool, start: int, stop: int) -> Tensor | None:
    return row[start:stop] if row is not None and kept else None
