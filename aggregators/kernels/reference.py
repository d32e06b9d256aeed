"""The reference backend: plain torch in float64, block by block. It defines what all others return."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from varangian.aggregators.kernels import centres
from varangian.aggregators.kernels.centres import Sums
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.rows import BLOCK, Rows

NAME = "reference"
DETECTS_INVALID = False

LARGEST_SQUARE = 2.0**1000
"""Squared norm of a row above which it is refused: float64 holds sums of millions of such squares."""


class NotFinite(ArithmeticError):
    """A row may not be finite, or a sum of finite rows overflowed; the caller screens and tries again."""


def refuses(rows: Rows) -> str | None:
    """Why the backend does not take such rows; this one takes all that torch does."""
    return None


def screen(rows: Rows) -> tuple[Tensor, Tensor]:
    """Which rows are finite, and which hold subnormal numbers: two (n,) bool tensors on the CPU.

    A row is finite when float64 has room for its squared norm, so that one huge entry of a float64 row
    cannot turn the Gram matrix into infinities.
    """
    tiny = rows.least_normal
    squares = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
    subnormal = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
    for _, block in rows.blocks(dtype=torch.float64):
        squares += block.square().sum(dim=1).cpu()
        size = block.abs()
        subnormal |= ((size > 0) & (size < tiny)).any(dim=1).cpu()
    return squares <= LARGEST_SQUARE, subnormal  # NaN is not


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    """Inner products of (x_1 - r, ..., x_n - r, r): (n+1, n+1) float64 on the CPU."""
    return centres.about_reference(centred(rows, reference))


def centred(rows: Rows, reference: Tensor | None) -> Tensor:
    """Inner products of (x_1 - c, ..., x_n - c, r - c, -c): (n+2, n+2) float64 on the CPU.

    The centre c may be any point: the nearer to the rows, the more digits their distances have.
    """
    return finish(accumulate(Sums.nothing(rows), rows, reference), rows.d, lambda: rows, reference)


def accumulate(sums: Sums, rows: Rows, reference: Tensor | None) -> Sums:
    """Add the inner products over some of the columns to the sums, and return these.

    Called for one slice of columns after the other it makes the same sums as for all at once.
    """
    sums.alone = False  # libraries multiply as they like
    for columns, block in rows.blocks(dtype=torch.float64):
        points = block.new_zeros(len(block) + 1, BLOCK)  # of one shape, wherever the columns are cut
        points[:-1, : block.shape[1]] = block
        if reference is not None:
            points[-1, : block.shape[1]] = reference[columns]
        b, parents = centres.keep_distances(partial(_products, points), centres.none(len(rows)))
        sums.add(b, parents)
    return sums


def _products(points: Tensor, parents: centres.Parents) -> Array:
    z = from_parents(points, parents)
    return (z @ z.T).cpu().numpy()


def from_parents(points: Tensor, parents: centres.Parents) -> Tensor:
    """(z_1, ..., z_n, r) of one block (x_1, ..., x_n, r): (n+1, b)."""
    where = [int(p) if p >= 0 else len(parents) for p in parents]
    z = points.clone()
    z[:-1] -= points[where]
    return z


def finish(sums: Sums, d: int, whole: Callable[[], Rows], reference: Tensor | None) -> Tensor:
    """The inner products once all d columns are in the sums; `whole` is there to measure again."""
    return sums.products()


def combine(coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Points from coordinates: (k, n+1) @ (x_1, ..., x_n, r) -> (k, d) in the rows' dtype.

    Unlike in `gram` the coordinates multiply the rows themselves, not their differences.
    """
    if out is None:
        out = torch.empty(coords.shape[0], rows.d, dtype=rows.dtype, device=rows.device)
    coords = coords.to(device=rows.device, dtype=torch.float64)
    for columns, block in rows.blocks(dtype=torch.float64):
        out[:, columns] = mixed(coords, block, reference, columns).to(rows.dtype)
    return out


def columnwise(
    rule: Callable[[Tensor], Tensor], coords: Tensor | None, rows: Rows, reference: Tensor | None
) -> Tensor:
    """A columnwise rule over the rows, or over the points with the given coordinates: (d,)."""
    return blockwise(rule, coords, rows, reference, torch.float64)


def blockwise(
    rule: Callable[[Tensor], Tensor],
    coords: Tensor | None,
    rows: Rows,
    reference: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty(rows.d, dtype=rows.dtype, device=rows.device)
    coords = None if coords is None else coords.to(device=rows.device, dtype=dtype)
    for columns, block in rows.blocks(dtype=dtype):
        points = block if coords is None else mixed(coords, block, reference, columns)
        out[columns] = rule(points).to(rows.dtype)
    return out


def mixed(coords: Tensor, block: Tensor, reference: Tensor | None, columns: slice) -> Tensor:
    """Coordinates (k, n+1) times one block of (x_1, ..., x_n, r): (k, b)."""
    points = coords[:, :-1] @ block
    if reference is not None and bool(coords[:, -1].any()):
        points += coords[:, -1:] * reference[columns].to(block)
    return points
