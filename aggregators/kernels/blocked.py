"""Fast enough without a compiler: float32 blocks that fit the cache, summed in float64 between blocks.

The float32 products lose distances that are tiny beside the norms, so `gram` looks at what it
computed and starts again in float64 when a distance was lost (`Bits left`), or when a product overflowed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from varangian.aggregators.kernels import reference as exact
from varangian.aggregators.rows import Rows

NAME = "blocked"

WIDTH = 1 << 12
"""Columns per block: short float32 sums, so that a block's own error stays near 1e-7."""

LOST = 1e-3
"""Below this ratio of a squared distance to the two squared norms, float32 products left too few bits:
their error is about 1e-8 of the norms, and distances are wanted to 1e-5."""


def refuses(rows: Rows) -> str | None:
    if rows.dtype == torch.float64:
        return "float64 rows would lose their precision in float32 blocks"
    return None


def screen(rows: Rows) -> tuple[Tensor, Tensor]:
    """As `reference.screen`; in float32 the square of any finite number fits float64."""
    tiny = torch.finfo(rows.dtype).tiny
    finite = torch.ones(len(rows), dtype=torch.bool)
    subnormal = torch.zeros(len(rows), dtype=torch.bool)
    for _, block in rows.blocks(WIDTH):
        size = block.abs()
        finite &= size.amax(dim=1).isfinite().cpu()
        subnormal |= ((size > 0) & (size < tiny)).any(dim=1).cpu()
    return finite, subnormal


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    n = len(rows)
    total = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=rows.device)
    for columns, block in rows.blocks(WIDTH):
        r = block.new_zeros(block.shape[1]) if reference is None else reference[columns].to(block)
        points = torch.cat([block - r, r[None]])
        total += points @ points.T
    return total.cpu() if trustworthy(total[:n, :n].cpu()) else exact.gram(rows, reference)


def trustworthy(inner: Tensor) -> bool:
    """Whether every distance among the rows kept enough bits. (n, n) float64 inner products."""
    if not bool(inner.isfinite().all()):
        return False
    squares = inner.diagonal()
    scale = squares[:, None] + squares[None, :]
    distance = scale - 2 * inner
    apart = ~torch.eye(len(inner), dtype=torch.bool)
    return bool((distance >= LOST * scale)[apart].all())


def combine(coords: Tensor, rows: Rows, reference: Tensor | None) -> Tensor:
    out = torch.empty(coords.shape[0], rows.d, dtype=rows.dtype, device=rows.device)
    coords = coords.to(device=rows.device, dtype=rows.working_dtype)
    for columns, block in rows.blocks():
        out[:, columns] = exact.mixed(coords, block, reference, columns).to(rows.dtype)
    return out


def columnwise(
    rule: Callable[[Tensor], Tensor], coords: Tensor | None, rows: Rows, reference: Tensor | None
) -> Tensor:
    return exact.blockwise(rule, coords, rows, reference, rows.working_dtype)
