"""The last look at a vector before it can reach a rule; one function, so that all backends see the same."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 15
"""Entries per step: 128 KiB of float32 and their magnitudes stay in a core's L2 cache."""


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
            return "not finite"
        block.masked_fill_(size < tiny, 0.0)
    return None
