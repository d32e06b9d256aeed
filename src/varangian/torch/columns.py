"""Passes over long columns of gradients, a block at a time, so that temporary tensors stay small.

n  rows     b  columns
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from varangian.aggregators.rows import Rows

AT_ONCE = 1 << 16
"""Columns of a block on a CPU, as a slice of the compiled kernels: what is computed of it stays in the
cache."""
AT_ONCE_ELSEWHERE = 1 << 24
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types of whole numbers by their bytes."""


def blocks(row: Tensor) -> Iterator[slice]:
    """Slices of all its columns, in order."""
    width = AT_ONCE if row.device.type == "cpu" else AT_ONCE_ELSEWHERE
    for start in range(0, len(row), width):
        yield slice(start, min(start + width, len(row)))


def sum_of_bits(row: Tensor) -> Tensor:
    """The sum of its numbers read as integers, int64: the same in any order."""
    bits = row.view(INTEGERS[row.element_size()])
    found = torch.zeros((), dtype=torch.int64, device=row.device)
    for place in blocks(row):
        found += bits[place].sum(dtype=torch.int64)
    return found


def finite(row: Tensor) -> bool:
    """Whether all of its numbers are."""
    return all(bool(row[place].isfinite().all()) for place in blocks(row))


def squared_distances(rows: Rows, update: Tensor) -> Tensor:
    """Of each row from the update in these columns: (n,) float64, NaN for a row that is not finite."""
    working = torch.float64 if update.dtype is torch.float64 else torch.float32
    found = torch.zeros(len(rows), dtype=torch.float64, device=update.device)
    for place in blocks(update):
        near = update[place].to(working)
        apart = [row[place].to(working) - near for row in rows.vectors]
        found += torch.stack([torch.dot(each, each) for each in apart]).double()
    return found.cpu()
