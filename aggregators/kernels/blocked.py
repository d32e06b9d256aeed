"""Fast enough without a compiler: float32 blocks that fit the cache, summed in float64 between blocks.

The float32 products lose distances that are tiny beside the norms, so `gram` looks at what it
computed and starts again in float64 when something was lost (`lost`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.kernels import lanes
from varangian.aggregators.kernels import reference as exact
from varangian.aggregators.kernels.reference import NotFinite
from varangian.aggregators.order import Order
from varangian.aggregators.rows import Rows

T = TypeVar("T")

NAME = "blocked"
NOTICES = False

WIDTH = 1 << 12
"""Columns per block of the Gram matrix: short float32 sums have small errors."""

STRIP = 1 << 17
"""Entries of one row that are screened at once: few calls, and still in cache."""

KEPT = 0.1
"""Of a squared distance over the sum of the two squared norms: the least that float32 products in a
single block keep to about 1e-5 (measured: they err by up to 4e-7 of the norms). Errors of several
blocks are independent, so that B blocks keep 1 / sqrt(B) of it."""

FLOOR = 1e-30
"""Mean square entry below which float32 products start to underflow."""

Measure: TypeAlias = Callable[[Rows, Tensor | None], Tensor]

INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def refuses(rows: Rows) -> str | None:
    if rows.dtype not in INTEGERS:
        return "float64 rows would lose their precision in float32 blocks"
    if torch.get_float32_matmul_precision() != "highest":
        return "torch.set_float32_matmul_precision allows products of less than float32"
    return None


def notices(rows: Rows) -> bool:
    """Whether `columnwise` with an `Order` needs no screening of such rows."""
    return rows.device.type == "cpu"


def screen(rows: Rows) -> tuple[Tensor, Tensor]:
    """As `reference.screen`; of these types the square of any finite number fits float64."""
    looks = [_look(vector) for vector in rows.vectors]
    sums, least = torch.stack([a for a, _ in looks]).cpu(), torch.stack([b for _, b in looks]).cpu()
    # A sum may overflow although every entry is finite.
    finite = [
        bool(s.isfinite()) or bool(v.isfinite().all()) for s, v in zip(sums, rows.vectors, strict=True)
    ]
    return torch.tensor(finite), least < _smallest_normal(rows)


def _look(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the entries, and the least of their magnitudes as integers with zero made largest.

    Twice the bits of a float, as an integer that wraps round, is twice its magnitude: the sign is gone.
    Less one, zero wraps to the top and subnormal numbers are what is left at the bottom. Comparing
    floats would take three times as long, and this is most of the time of a screening.
    """
    sums, least = [], []
    integer = INTEGERS[vector.dtype]
    top = torch.tensor(torch.iinfo(integer).max, dtype=integer)
    for strip in vector.split(STRIP):
        sums.append(strip.sum(dtype=torch.float32))
        least.append(torch.add(top, strip.view(integer), alpha=2).amin())
    return torch.stack(sums).sum(), torch.stack(least).amin()


def _smallest_normal(rows: Rows) -> int:
    """What the least number that does not count as zero looks like in `_look`; no float16 counts so."""
    integer = INTEGERS[rows.dtype]
    bits = int(torch.tensor(rows.least_normal, dtype=rows.dtype).view(integer))
    return max(torch.iinfo(integer).min, torch.iinfo(integer).min - 1 + 2 * bits)


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    return settled(accumulated(exact.nothing(rows), rows, reference), reference, rows.d, lambda: rows)


def accumulated(total: Tensor, rows: Rows, reference: Tensor | None) -> Tensor:
    n = len(rows)
    for columns, block in rows.blocks(WIDTH):
        if reference is None:
            total[:n, :n] += block @ block.T
        else:
            points = exact.about(block, reference[columns].to(block))
            total += points @ points.T
    return total


def settled(total: Tensor, reference: Tensor | None, d: int, whole: Callable[[], Rows]) -> Tensor:
    return checked(total.cpu(), reference, d, whole, exact.gram)


def verified(rows: Rows, reference: Tensor | None, quick: Measure, slow: Measure) -> Tensor:
    """The quick Gram matrix where it kept enough bits, else the slow one."""
    return checked(quick(rows, reference), reference, rows.d, lambda: rows, slow)


def checked(
    products: Tensor, reference: Tensor | None, d: int, whole: Callable[[], Rows], slow: Measure
) -> Tensor:
    """The products of a quick measurement where they kept enough bits, else those of the slow one."""
    maybe = lost(products.numpy()[:-1, :-1], d)
    sound = not maybe.any()
    if sound and not any(_small(products, reference, d)):
        return products
    rows = whole()
    if sound and not _underflow(products, rows, reference):
        return products
    # Colluders who all send one vector must not buy a slow round: one of them is measured.
    first = _first_equal(rows, maybe)
    apart = sorted(set(first))
    index = torch.tensor([apart.index(i) for i in first] + [len(apart)])
    some = rows.keep(apart)
    kept = products[[*apart, -1]][:, [*apart, -1]]
    if lost(kept.numpy()[:-1, :-1], d).any() or _underflow(kept, some, reference):
        kept = slow(some, reference)
    return kept[index][:, index]


def lost(inner: NDArray[np.float64], d: int) -> NDArray[np.bool_]:
    """Which distances kept too few bits: (n, n) float64 inner products of vectors (d,) -> (n, n) bool."""
    squares = inner.diagonal()
    enough = KEPT / math.sqrt(math.ceil(d / WIDTH))
    with np.errstate(invalid="ignore"):  # what overflowed is lost
        scale = squares[:, None] + squares
        kept = (scale - 2 * inner >= enough * scale) & np.isfinite(inner)
    np.fill_diagonal(kept, True)
    return ~(kept & np.isfinite(squares))


def _small(products: Tensor, reference: Tensor | None, d: int) -> list[bool]:
    """Of each row, and of the reference if there is one, whether float32 products began to underflow."""
    squares = products.numpy().diagonal()
    small: list[bool] = (squares[: len(squares) - (reference is None)] < FLOOR * d).tolist()
    return small


def _underflow(products: Tensor, rows: Rows, reference: Tensor | None) -> bool:
    """Whether a point is so small that its products vanished, and yet is not zero."""
    small = _small(products, reference, rows.d)
    return any(
        not _same(row, reference, rows.least_normal)
        for row, tiny in zip(rows.vectors, small, strict=False)
        if tiny
    ) or (reference is not None and small[-1] and bool(reference.any()))


def _same(row: Tensor, reference: Tensor | None, least: float) -> bool:
    if reference is not None:
        return torch.equal(row, reference.to(row))
    return not bool((row.abs() >= least).any())  # subnormal numbers count as zero


def _first_equal(rows: Rows, maybe: NDArray[np.bool_]) -> list[int]:
    """For each row the first that is the same, where `maybe` (n, n) says that it could be."""
    first: list[int] = []
    for i, row in enumerate(rows.vectors):
        same = (j for j in range(i) if maybe[i, j] and first[j] == j and row.equal(rows.vectors[j]))
        first.append(next(same, i))
    return first


def combine(coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor | None = None) -> Tensor:
    used = coords[:, :-1].any(dim=0).nonzero().flatten().tolist()
    if len(used) == 1:  # Krum: the other rows need not be read
        rows, coords = rows.keep(used), coords[:, [*used, -1]]
    if out is None:
        out = torch.empty(coords.shape[0], rows.d, dtype=rows.dtype, device=rows.device)
    coords = coords.to(device=rows.device, dtype=rows.working_dtype)
    for columns, block in rows.blocks():
        out[:, columns] = exact.mixed(coords, block, reference, columns).to(rows.dtype)
    return out


def columnwise(
    rule: Callable[[Tensor], Tensor], coords: Tensor | None, rows: Rows, reference: Tensor | None
) -> Tensor:
    """As `reference.columnwise`; rows for an `Order` need no screening.

    Raises:
        NotFinite: a row is not, or they hold subnormal numbers that are not read as zero.
    """
    if rows.device.type != "cpu" or not isinstance(rule, Order):
        return exact.blockwise(rule, coords, rows, reference, rows.working_dtype)
    out = torch.empty(rows.d)
    coords = None if coords is None else coords.float()
    strips = range(0, rows.d, lanes.WIDTH)

    def part(some: range) -> None:
        reduce = lanes.Reducer(rule, len(rows) if coords is None else len(coords))
        with lanes.subnormals_as_zero() as able, np.errstate(over="ignore", invalid="ignore"):
            if coords is None and not able:
                _refuse_what_screening_finds(rows)
            for start in some:
                columns = slice(start, min(start + lanes.WIDTH, rows.d))
                points, result = rows.block(columns.start, columns.stop), out[columns].numpy()
                if coords is not None:
                    points = exact.mixed(coords, points, reference, columns)
                elif not lanes.finite([*points.numpy()], result):
                    raise NotFinite
                if not reduce([*points.numpy()], result):
                    out[columns] = rule(points)

    threads = torch.get_num_threads()
    in_threads(part, [strips[i::threads] for i in range(threads)])
    return out.to(rows.dtype)


def _refuse_what_screening_finds(rows: Rows) -> None:
    finite, subnormal = screen(rows)
    if not bool(finite.all()) or bool(subnormal.any()):
        raise NotFinite


def in_threads(part: Callable[[T], object], given: Sequence[T]) -> None:
    """`part` of everything, each in a thread of its own."""
    if len(given) == 1:
        part(given[0])
        return
    with ThreadPoolExecutor(len(given)) as pool:
        list(pool.map(part, given))
