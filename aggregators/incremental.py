"""An aggregate that is begun before its rows are complete.

What a rule does with d columns it does column by column: sums of products, sorted columns, weighted sums.
So it can do so to the columns that everyone has sent while the rest is on its way. It has to guess whose
rows will count in the end; where the guess was wrong the work is done again. The bits never depend on it.

n  rows that may come     d  columns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

from varangian.aggregators.base import (
    Aggregate,
    AggregationError,
    Columnwise,
    Weighting,
    is_columnwise,
    is_ordered,
    is_selecting,
)
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import Backend, GramAccumulator, NotFinite, accumulate, backend_for
from varangian.aggregators.pipeline import Aggregator, on_rows
from varangian.aggregators.rows import Rows

How: TypeAlias = Columnwise | Tensor
"""How columns of the rows become the update's: by a rule, or by coefficients of (x_1, ..., x_n, r)."""

SLICES = 4
"""Slices of one step: so long that starting it costs nothing, so short that little is left for the end."""


class Incremental:
    """One attempt at one round. Any thread may use it, but only one at a time.

    Args:
        aggregator: what is to become of the rows.
        n: rows that may come; their places are 0 to n - 1.
        d: columns of each.
        reference: as the aggregator takes it.
        faults: rows of these workers will not come, as the aggregator takes it. A guess, too.
    """

    def __init__(
        self, aggregator: Aggregator, n: int, d: int, reference: Tensor | None = None, *, faults: int = 0
    ) -> None:
        self._aggregator = aggregator
        self._n = n
        self._d = d
        self._reference = reference
        self._faults = faults
        self._early: _Early | None = None
        self.step = SLICES * accumulate.SLICE
        """Columns that are worth an `advance`; every one but the last ends at a multiple of it."""
        self.columns = 0
        """Columns that are done."""
        self.lost = False
        """Whether the guess has proved wrong, so that `finish` will start over."""

    def advance(self, rows: Sequence[Tensor | None], to: int) -> None:
        """Do the columns before `to`, or before the last multiple of `step` in it.

        Args:
            rows: n vectors (d,), of which the columns before `to` have come; None for one that will not
                come. They are read again later. The first call decides who is expected.
            to: at most d.
        """
        to = self.until(to)
        if self._early is None and to > 0:
            self._early = self._begun([i for i, row in enumerate(rows) if row is not None])
        while self._early is not None and not self.lost and self.columns < to:
            stop = min(self.columns + self.step, to)
            try:
                self._early.take(rows, self.columns, stop)
            except NotFinite:
                self.lost = True
            self.columns = stop
            self.lost = self.lost or not self._early.alive

    def until(self, to: int) -> int:
        """How many columns can be done when so many have come."""
        return self._d if to >= self._d else to - to % self.step

    def remove(self, i: int) -> None:
        """The row in this place will not come any more, or it will come again."""
        if self._early is not None:
            self._early.remove(i)
            self.lost = self.lost or not self._early.alive

    def finish(
        self,
        rows: Sequence[Tensor | None],
        present: Sequence[int],
        rng: torch.Generator | None = None,
        faults: int = 0,
    ) -> Aggregate:
        """What the aggregator makes of the rows in these places, in their order; the same bits.

        Raises:
            As the aggregator.
        """
        vectors = [cast("Tensor", rows[i]) for i in present]
        early = self._valid(rows, present)
        if early is None:
            return self._aggregator(vectors, self._reference, rng, faults=faults)
        return self._aggregator(
            vectors,
            self._reference,
            rng,
            faults=faults,
            measured=lambda: early.measured(vectors),
            ready=early.ready,
        )

    def _valid(self, rows: Sequence[Tensor | None], present: Sequence[int]) -> _Early | None:
        """What was done early, completed, if it was done to these rows."""
        here = set(present)
        if self._early is None or list(present) != sorted(here):
            return None
        for i in range(self._n):
            if i not in here:
                self.remove(i)
        if self.lost or set(self._early.members) != here:
            return None
        self.advance([row if i in here else None for i, row in enumerate(rows)], self._d)
        return None if self.lost else self._early

    def _begun(self, members: list[int]) -> _Early | None:
        how = _known(self._aggregator, len(members), self._faults)
        if how is not None:
            return _Columns(how, members, self._d, self._reference, self._aggregator.backend)
        products = GramAccumulator(self._n, self._d, self._reference, backend=self._aggregator.backend)
        return _Products(products, members)


class _Early(Protocol):
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


class _Products:
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
        return self._accumulator.products(vectors)

    def ready(self, how: How) -> Tensor | None:
        return None


class _Columns:
    """Finished columns of the update: they hold for exactly these rows."""

    def __init__(
        self, how: How, members: Sequence[int], d: int, reference: Tensor | None, backend: str | None
    ) -> None:
        self.members = members
        self.alive = True
        self._how = how
        self._d = d
        self._reference = reference
        self._backend = backend
        self._vector: Tensor | None = None

    def take(self, rows: Sequence[Tensor | None], start: int, stop: int) -> None:
        pieces = [row[start:stop] for i in self.members if (row := rows[i]) is not None]
        if len(pieces) < len(self.members):
            self.alive = False
            return
        block = Rows.of(pieces)
        backend = backend_for(block, self._backend)
        if not _sound(block, backend):
            raise NotFinite
        if self._vector is None:
            self._vector = torch.empty(self._d, dtype=block.dtype, device=block.device)
        reference = None if self._reference is None else self._reference[start:stop]
        self._vector[start:stop] = reduced(self._how, block, reference, backend)

    def remove(self, i: int) -> None:
        self.alive = self.alive and i not in self.members

    def measured(self, vectors: Sequence[Tensor]) -> Tensor:
        raise AssertionError("a rule that never looks at distances asked for them")

    def ready(self, how: How) -> Tensor | None:
        return self._vector if _same(how, self._how) else None


def reduced(how: How, block: Rows, reference: Tensor | None, backend: Backend) -> Tensor:
    """Some columns of the update, from the same columns of the rows and of the reference."""
    if isinstance(how, Tensor):
        return backend.combine(how[None], block, reference)[0]
    reduce = how.order(len(block)) if is_ordered(how) else how.columnwise
    return backend.columnwise(reduce, None, block, reference)


def _known(aggregator: Aggregator, n: int, faults: int) -> How | None:
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


def _sound(block: Rows, backend: Backend) -> bool:
    """Whether the aggregator, which screens whole rows, would find nothing here."""
    if block.dtype == torch.float64:
        return False  # sums of squares may be too much for the whole row and not for a part
    if backend.NOTICES:
        return True
    finite, subnormal = backend.screen(block)
    return bool(finite.all()) and not bool(subnormal.any())


def _same(a: How, b: How) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b


def _piece(row: Tensor | None, kept: bool, start: int, stop: int) -> Tensor | None:
    return row[start:stop] if row is not None and kept else None
