"""Block-wise aggregation: one rule for each parameter tensor of the model, by itself.

n  rows     d  columns (parameters)     f  Byzantine rows

A block is a range of consecutive columns, and the blocks make up all d. Mixings and rule see one block at a
time, so each block has its own distances, neighbours and weights; lengths that are clipped or compared are
those of the block.

The robustness coefficient is that of the same aggregator for whole vectors. Let S be n - f rows, and write
b for the columns of a block. In each block (f, kappa)-robustness says

    |F_b - mean_S,b|^2  <=  kappa  mean over S of |x_i,b - mean_S,b|^2

for the same S, as rows are of the same workers in all blocks. Squared lengths of blocks add up to those of
whole vectors, so the sum over blocks is the inequality for whole vectors, with the same kappa. It says more
than that inequality alone, which lets one block have the deviation of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators.base import Aggregate
from varangian.aggregators.errors import AggregationError
from varangian.aggregators.kernels import backend_for
from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.rows import Rows, RowsError


class BlockAggregator(Protocol):
    """The aggregator of one block: an `Aggregator` of whole rows."""

    def __call__(
        self,
        rows: Rows,
        reference: Tensor | None,
        rng: torch.Generator,
        *,
        faults: int,
        into: Tensor | None,
        weights: Shares | None,
    ) -> Aggregate: ...

    def among(self, kept: Sequence[int], faults: int, weights: Shares | None = None) -> BlockAggregator: ...


def columns_of(blocks: Sequence[int] | None, d: int) -> list[slice]:
    """The columns of each block that has any.

    Args:
        blocks: sizes, as of the parameter tensors of a model, in the order of the columns.
        d: how many columns there are.

    Raises:
        RowsError: there are no sizes, or they do not add up to d.
    """
    if blocks is None:
        raise RowsError("`blocks` should be given with per_block: the sizes of the parameter tensors.")
    if any(size < 0 for size in blocks) or sum(blocks) != d:
        raise RowsError(
            f"`blocks` should be sizes that add up to {d}, the length of the rows. Found {[*blocks]}."
        )
    return [slice(start, stop) for start, stop in pairwise(accumulate(blocks, initial=0)) if start < stop]


def aggregate_blocks(
    aggregator: BlockAggregator,
    rows: Rows,
    reference: Tensor | None,
    rng: torch.Generator,
    *,
    blocks: Sequence[slice],
    faults: int,
    into: Tensor | None,
    shares: Shares | None = None,
) -> Aggregate:
    """The updates of all blocks, one behind the other.

    A row that is not finite in one block is dropped from all of them, and counts as one of the f once.
    Mixings draw the same in each block: the groups of bucketing are the same workers everywhere.

    Args:
        aggregator: of one block.
        rows: whole.
        reference: whole, of the device and the type of the computation or any other.
        rng: randomness of the mixings.
        blocks: columns of each.
        faults: as `Aggregator.__call__` takes it.
        into: memory (d,) for the update; unused where rows have a wider type.
        shares: weights of the rows; None where all weigh the same.

    Raises:
        AggregationError: as of one block; or the rows that are left are too few.
    """
    if into is not None and torch.promote_types(into.dtype, rows.dtype) == into.dtype:
        vector = into
    else:
        vector = torch.empty(rows.d, dtype=rows.dtype, device=rows.device)
    n, kept, before = len(rows), [*range(len(rows))], rng.get_state()

    def each(now: BlockAggregator, left: Rows, gone: int, weights: Shares | None) -> Iterator[Aggregate]:
        for columns in blocks:
            rng.set_state(before)
            part = left.columns(columns.start, columns.stop)
            known = None if reference is None else reference[columns]
            place = vector[columns]
            found = now(part, known, rng, faults=gone, into=place, weights=weights)
            if found.vector.data_ptr() != place.data_ptr():
                place.copy_(found.vector)
            yield found

    found = list[Aggregate]()
    try:
        # In almost every round all rows are finite: they are read once.
        found = [*each(aggregator, rows, faults, shares)]
        dropped = tuple(sorted({row for one in found for row in one.dropped}))
    except AggregationError:
        # Too few rows in a block may be enough once those that are invalid in any have spent of f.
        dropped = tuple((~backend_for(rows).screen(rows)[0]).nonzero().flatten().tolist())
        if not dropped:
            raise
    if dropped:
        kept = [row for row in kept if row not in dropped]
        weighing = None if shares is None else shares.keeping(kept)
        now = aggregator.among(kept, faults + len(dropped), weighing)
        found = [*each(now, rows.keep(kept), 0, weighing)]
    sizes = [(columns.stop - columns.start) / rows.d for columns in blocks]
    return Aggregate(
        vector,
        _weights(found, sizes, kept, n),
        dropped,
        sum(share * one.reference_weight for share, one in zip(sizes, found, strict=True)),
        spread=_sum([one.spread for one in found]),
    )


def _weights(
    found: Sequence[Aggregate], shares: Sequence[float], kept: Sequence[int], n: int
) -> Tensor | None:
    """The mean weight of each row over the columns of the update, (n,); None of a rule without weights."""
    weights = torch.zeros(n, dtype=torch.float64, device="cpu")
    for one, share in zip(found, shares, strict=True):
        if one.weights is None:
            return None
        weights[[*kept]] += share * one.weights
    return weights


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
