"""The update from rows that are seen once, block by block, and then forgotten.

Only for rules of which it is known beforehand what becomes of a column: sorted columns, and weighted sums
whose weights depend on nothing but the number of rows.

n  rows     d  columns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from varangian.aggregators import answers
from varangian.aggregators.base import (
    Aggregate,
    Weighting,
    is_columnwise,
    is_selecting,
    is_whole,
)
from varangian.aggregators.errors import AggregationError, PartError
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import NotFinite, accumulate, after, backend_for
from varangian.aggregators.pipeline import (
    Aggregator,
    How,
    Weights,
    columns_by,
    on_rows,
    reduce_columns,
    shares_of,
)
from varangian.aggregators.rows import Rows

SLICES = 4
"""Slices in a block: so many that starting one costs nothing, so few that its rows stay small."""


def block_columns() -> int:
    """Columns of a block that is worth a call."""
    return SLICES * accumulate.SLICE


def streams(aggregator: Aggregator, n: int) -> bool:
    """Whether the aggregator needs no row of n twice."""
    return _reduction(aggregator, n, 0) is not None


class Stream:
    """The update of a fixed set of rows.

    Args:
        aggregator: what is to become of them.
        n: how many there are.
        d: columns of each.
        reference: as the aggregator takes it.
        faults: rows of these workers are gone already, as the aggregator takes it.
        into: memory (d,) for the update; at least as wide as the rows.
        weights: of the rows, and then of those that are gone, as the aggregator takes them.
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
        weights: Weights | None = None,
    ) -> None:
        self._aggregator = aggregator
        self._reference = reference
        self._how = _reduction(aggregator, n, faults, weights)
        self._vector = torch.empty(d, dtype=torch.float32, device="cpu") if into is None else into
        self._columns = 0
        self._failed: PartError | None = None
        """The first error of a rule of the user; the other columns come all the same."""

    def holds(self, n: int, faults: int, weights: Weights | None = None) -> bool:
        """Whether the same is to become of n rows, of these weights, when so many are gone."""
        how = _reduction(self._aggregator, n, faults, weights)
        return how is not None and self._how is not None and _same(how, self._how)

    def advance(self, block: Sequence[Tensor], start: int) -> None:
        """The columns from `start` on of all rows, in their order."""
        if self._how is None:
            return
        part, name = Rows.of(block), self._aggregator.backend
        try:
            reduce_columns(self._how, part, self._reference, name, self._vector, start)
        except NotFinite:
            # Sums of finite numbers overflowed in these kernels; others have room for them.
            other = after(backend_for(part, name), part).NAME
            reduce_columns(self._how, part, self._reference, other, self._vector, start)
        except PartError as error:
            self._failed = self._failed or error
        self._columns = start + part.d

    def finish(self, n: int, faults: int, weights: Weights | None = None) -> Aggregate:
        """The aggregate of these rows.

        Raises:
            AggregationError: as the aggregator; or it would make something else of n rows.
        """
        self._aggregator.among(range(n), faults, weights)
        if not self.holds(n, faults, weights) or self._columns < len(self._vector):
            raise AggregationError("Columns were forgotten before it was known whose rows count.")
        if self._failed is not None:
            raise self._failed
        if isinstance(self._how, Tensor):
            return Aggregate(self._vector, self._how[:-1].double(), (), float(self._how[-1]))
        return Aggregate(self._vector, None, ())


def _reduction(aggregator: Aggregator, n: int, faults: int, weights: Weights | None = None) -> How | None:
    """The reduction of the columns of n rows, if it is known before the rows are; else None."""
    try:
        shares = shares_of(weights, n, faults)
        now = aggregator.among(range(n), faults, shares)
    except AggregationError:
        return None
    if now.mix or is_selecting(now.rule):
        return None
    if is_columnwise(now.rule):
        return columns_by(now.rule, shares)
    if is_whole(now.rule):
        return None
    gram = Gram.about(_refuse_to_measure, n).weighted(shares)
    try:
        return on_rows(gram.combination(answers.weights(cast("Weighting", now.rule), gram)))
    except (_DependsOnRows, PartError):
        return None


class _DependsOnRows(Exception):
    """The weights depend on the rows."""


def _refuse_to_measure() -> Tensor:
    raise _DependsOnRows


def _same(a: How, b: How) -> bool:
    """Whether both make the same of the same columns."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b
