"""An aggregate that is begun before its rows are complete.

What a rule does with d columns it does column by column: sums of products, sorted columns, weighted sums.
So it can do so to the columns that everyone has sent while the rest is on its way. It has to guess whose
rows will count in the end; where the guess was wrong the work is done again. The bits never depend on it.

n  rows that may come     d  columns
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from varangian.aggregators.base import Aggregate
from varangian.aggregators.kernels import GramAccumulator, NotFinite, accumulate
from varangian.aggregators.pipeline import Aggregator
from varangian.aggregators.rows import Rows
from varangian.aggregators.streaming.early import Columns, Early, How, Products, known, reduce

SLICES = 4
"""Slices of one step: so long that starting it costs nothing, so short that little is left for the end."""


def block() -> int:
    """Columns of one step."""
    return SLICES * accumulate.SLICE


class Incremental:
    """One attempt at one round. Any thread may use it, but only one at a time.

    Args:
        aggregator: what is to become of the rows.
        n: rows that may come; their places are 0 to n - 1.
        d: columns of each.
        reference: as the aggregator takes it.
        faults: rows of these workers will not come, as the aggregator takes it. A guess, too.
        into: memory (d,) for the update, if it is to be in this type; at least as wide as the rows'.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        n: int,
        d: int,
        reference: Tensor | None = None,
        *,
        faults: int = 0,
        into: Tensor | None = None,
    ) -> None:
        self._aggregator = aggregator
        self._n = n
        self.d = d
        """Columns in all."""
        self._reference = reference
        self._faults = faults
        self._into = into
        self._early: Early | None = None
        self.step = block()
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
        return self.d if to >= self.d else to - to % self.step

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
        measured: Callable[[], Tensor] | None = None,
    ) -> Aggregate:
        """What the aggregator makes of the rows in these places, in their order; the same bits.

        `measured` is as the aggregator takes it, for rows of which nothing was done early.

        Raises:
            As the aggregator.
        """
        whole = Rows.of([cast("Tensor", rows[i]) for i in present])
        early = self._valid(rows, present)

        def ready(how: How) -> Tensor | None:
            vector = early.ready(how) if early is not None else None
            return self._made(how, whole) if vector is None else vector

        return self._aggregator(
            whole.vectors,
            self._reference,
            rng,
            faults=faults,
            measured=measured if early is None else lambda: early.measured(whole.vectors),
            ready=ready,
        )

    def _made(self, how: How, rows: Rows) -> Tensor | None:
        """The update in the memory that is there for it."""
        vector = self._into
        if vector is None or torch.promote_types(vector.dtype, rows.dtype) != vector.dtype:
            return None
        backend = self._aggregator.backend
        # Rows that have to be widened are so a few columns at a time.
        width = self.d if rows.dtype == vector.dtype else self.step
        for start in range(0, self.d, width):
            part = rows.columns(start, min(start + width, self.d))
            reduce(how, part, self._reference, backend, vector, start)
        return vector

    def _valid(self, rows: Sequence[Tensor | None], present: Sequence[int]) -> Early | None:
        """What was done early, completed, if it was done to these rows."""
        here = set(present)
        if self._early is None or list(present) != sorted(here):
            return None
        for i in range(self._n):
            if i not in here:
                self.remove(i)
        if self.lost or set(self._early.members) != here:
            return None
        self.advance([row if i in here else None for i, row in enumerate(rows)], self.d)
        return None if self.lost else self._early

    def _begun(self, members: list[int]) -> Early | None:
        how = known(self._aggregator, len(members), self._faults)
        if how is not None:
            return Columns(how, members, self.d, self._reference, self._aggregator.backend, self._into)
        products = GramAccumulator(self._n, self.d, self._reference, backend=self._aggregator.backend)
        return Products(products, members)
