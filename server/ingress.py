"""The one way in for numbers, so that all backends see the same: stored and screened in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 15
"""Entries per step: 128 KiB of float32 and their magnitudes stay in a core's L2 cache."""


def landed(source: memoryview, at: int, dtype: torch.dtype, row: Tensor) -> bool:
    """Numbers as they came, into `row` (d,) from entry `at` on; whether all of them are finite there.

    Args:
        source: whole numbers, little-endian, wherever they lie in memory.
        at: where the first of them goes.
        dtype: of the source; float32 or bfloat16.
        row: of either type. Subnormal numbers become zero, as in `screened`.
    """
    width = dtype.itemsize
    for start in range(0, len(source), BLOCK * width):
        piece = source[start : start + BLOCK * width]
        begin = at + start // width
        target = row[begin : begin + len(piece) // width]
        numbers = target if dtype == row.dtype else torch.empty(len(target), dtype=dtype)
        numbers.view(torch.uint8).numpy().data[:] = piece
        if numbers is not target:
            target.copy_(numbers)
        if screened(target) is not None:
            return False
    return True


def screened(row: Tensor) -> str | None:
    """Flush subnormal numbers of `row` (d,) to zero in place; why it is provably invalid, or None.

    Subnormal numbers carry nothing that a gradient needs, and arithmetic on them is some hundred times
    slower on common processors: a worker could stop the server with a finite vector. Zeros lose their
    sign on the way, so equal values are equal bytes from here on.
    """
    tiny = torch.finfo(row.dtype).tiny
    for block in row.split(BLOCK):
        size = block.abs()
        # The largest magnitude is NaN if any entry is.
        if not bool(size.amax().isfinite()):
            return NOT_FINITE
        block.masked_fill_(size < tiny, 0.0)
    return None


NOT_FINITE = "not finite"
"""The proof that stands in the record."""
