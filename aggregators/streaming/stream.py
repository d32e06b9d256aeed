"""An update from rows that are seen once, block by block, and then forgotten.

Only for what is known of an update before the rows are: sorted columns, and weighted sums whose weights
depend on nothing but the number of rows.

n  rows     d  columns
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varangian.aggregators.base import Aggregate, AggregationError
from varangian.aggregators.kernels import NotFinite, after, backend_for
from varangian.aggregators.pipeline import Aggregator
from varangian.aggregators.rows import Rows
from varangian.aggregators.streaming.early import known, reduce, same


def streams(aggregator: Aggregator, n: int) -> bool:
    """Whether the aggregator needs no row of n twice."""
    return known(aggregator, n, 0) is not None


class Stream:
    """The update of a fixed set of rows.

    Args:
        aggregator: what is to become of them.
        n: how many there are.
        d: columns of each.
        reference: as the aggregator takes it.
        faults: rows of these workers are gone already, as the aggregator takes it.
        into: memory (d,) for the update; at least as wide as the rows.
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
        self._reference = reference
        self._how = known(aggregator, n, faults)
        self._vector = torch.empty(d) if into is None else into
        self._columns = 0

    def holds(self, n: int, faults: int) -> bool:
        """Whether the same is to become of n rows when so many are gone."""
        how = known(self._aggregator, n, faults)
        return how is not None and self._how is not None and same(how, self._how)

    def advance(self, block: Sequence[Tensor], start: int) -> None:
        """The columns from `start` on of all rows, in their order."""
        if self._how is None:
            return
        part, name = Rows.of(block), self._aggregator.backend
        try:
            reduce(self._how, part, self._reference, name, self._vector, start)
        except NotFinite:
            # Sums of finite numbers overflowed in these kernels; others have room for them.
            other = after(backend_for(part, name), part).NAME
            reduce(self._how, part, self._reference, other, self._vector, start)
        self._columns = start + part.d

    def finish(self, n: int, faults: int) -> Aggregate:
        """What the aggregator makes of these rows.

        Raises:
            AggregationError: as the aggregator; or it would make something else of n rows.
        """
        self._aggregator.among(range(n), faults)
        if not self.holds(n, faults) or self._columns < len(self._vector):
            raise AggregationError("Columns were forgotten before it was known whose rows count.")
        if isinstance(self._how, Tensor):
            return Aggregate(self._vector, self._how[:-1].double(), (), float(self._how[-1]))
        return Aggregate(self._vector, None, ())
