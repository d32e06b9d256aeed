"""The backend without a compiler: float32 blocks that fit the cache, summed in float64.

Float32 products lose distances that are tiny beside the norms, so every block is measured from centres of
its own (`centres`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.kernels import centres, sorting_network
from varangian.aggregators.kernels import reference as exact
from varangian.aggregators.kernels.centres import Parents, Sums
from varangian.aggregators.kernels.reference import NotFinite
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.order import Order
from varangian.aggregators.rows import BLOCK, Rows

T = TypeVar("T")

NAME = "blocked"
DETECTS_INVALID = False

WIDTH = 1 << 9
"""Columns of one float32 sum of the Gram matrix: short sums have small errors."""

STRIP = 1 << 17
"""Entries of one row that are screened at once: few calls, and still in cache."""

FLOOR = 1e-30
"""Mean square entry below which float32 products start to underflow."""

SHORT = 1e-3
"""Squared length of a typical row over that of the reference below which it is measured without it."""

Measure: TypeAlias = Callable[[Rows, Tensor | None], Tensor]

INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def refuses(rows: Rows) -> str | None:
    if rows.dtype not in INTEGERS:
        return "float64 rows would lose their precision in float32 blocks"
    if torch.get_float32_matmul_precision() != "highest":
        return "torch.set_float32_matmul_precision allows products of less than float32"
    return None


def detects_invalid(rows: Rows) -> bool:
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
    return torch.tensor(finite, device="cpu"), least < _smallest_normal(rows)


def _look(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the entries, and the least of their magnitudes as integers with zero made largest.

    Twice the bits of a float, as an integer that wraps round, is twice its magnitude: the sign is gone.
    Less one, zero wraps to the top and subnormal numbers are what is left at the bottom. Comparing
    floats would take three times as long, and this is most of the time of a screening.
    """
    sums, least = [], []
    integer = INTEGERS[vector.dtype]
    top = torch.tensor(torch.iinfo(integer).max, dtype=integer, device="cpu")
    for strip in vector.split(STRIP):
        sums.append(strip.sum(dtype=torch.float32))
        least.append(torch.add(top, strip.view(integer), alpha=2).amin())
    return torch.stack(sums).sum(), torch.stack(least).amin()


def _smallest_normal(rows: Rows) -> int:
    """The bits of the least number that does not count as zero, for `_look`; no float16 counts as zero."""
    integer = INTEGERS[rows.dtype]
    bits = int(torch.tensor(rows.least_normal, dtype=rows.dtype, device="cpu").view(integer))
    return max(torch.iinfo(integer).min, torch.iinfo(integer).min - 1 + 2 * bits)


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    return centres.about_reference(centred(rows, reference))


def centred(rows: Rows, reference: Tensor | None) -> Tensor:
    return finish(accumulate(Sums.nothing(rows), rows, reference), rows.d, lambda: rows, reference)


def accumulate(sums: Sums, rows: Rows, reference: Tensor | None) -> Sums:
    sums.alone = False  # libraries multiply as they like
    points = torch.zeros(len(rows) + 1, BLOCK, dtype=torch.float32, device=rows.device)
    for columns, block in rows.blocks():
        # In the same memory and of one shape, wherever the columns are cut: the bits may depend on both.
        points[:, block.shape[1] :] = 0
        points[:-1, : block.shape[1]] = block
        if reference is not None:
            points[-1, : block.shape[1]] = reference[columns]
        measure = partial(_products, points, reference is None)
        sums.add(*centres.keep_distances(measure, centres.none(len(rows))))
    return sums


def _products(points: Tensor, plain: bool, parents: Parents) -> Array:
    """Inner products of (z_1, ..., z_n, r), in float32 over WIDTH columns each."""
    z = points if plain and (parents < 0).all() else exact.from_parents(points, parents)
    short = z.view(len(z), -1, WIDTH).transpose(0, 1)
    products: Array = torch.bmm(short, short.transpose(1, 2)).sum(dim=0, dtype=torch.float64).cpu().numpy()
    return products


def finish(sums: Sums, d: int, whole: Callable[[], Rows], reference: Tensor | None) -> Tensor:
    products = sums.products()
    if bool(products.diagonal().isfinite().all()):
        return checked(products, d, whole, reference, exact.centred)
    return exact.centred(whole(), reference)  # squares of finite numbers may overflow


def checked(
    products: Tensor, d: int, whole: Callable[[], Rows], reference: Tensor | None, slow: Measure
) -> Tensor:
    """The products (n+2, n+2) of a quick measurement, or of a slow one if digits were lost in it."""
    if reference is not None and _far(products):
        return _with_far(whole(), reference)
    small = (centres.squares_about_reference(products.numpy()) < FLOOR * d).tolist()
    if not any(small[: len(small) - (reference is None)]):
        return products
    rows = whole()
    return slow(rows, reference) if _underflow(small, rows, reference) else products


def _far(products: Tensor) -> bool:
    """Whether a typical row is so much shorter than the reference that its length is rounding."""
    inner = products.numpy()
    squares = inner.diagonal() - 2 * inner[:, -1] + inner[-1, -1]  # about the origin
    ordered, n = np.sort(squares[:-2]), len(squares) - 2
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return bool(median < SHORT * squares[-2])


def _with_far(rows: Rows, reference: Tensor) -> Tensor:
    """The products of `centred`, from a measurement about the origin: the reference is one more row."""
    dtype, last = rows.working_dtype, len(rows) + 2
    points = Rows((*(v.to(dtype) for v in rows.vectors), reference.to(rows.device, dtype)))
    index = [*range(len(rows) + 1), last]
    return exact.centred(points, None)[index][:, index]


def _underflow(small: Sequence[bool], rows: Rows, reference: Tensor | None) -> bool:
    """Whether one of the points that are small is not zero."""
    return any(
        not _same(row, reference, rows.least_normal)
        for row, tiny in zip(rows.vectors, small, strict=False)
        if tiny
    ) or (reference is not None and small[-1] and bool(reference.any()))


def _same(row: Tensor, reference: Tensor | None, least: float) -> bool:
    if reference is not None:
        return torch.equal(row, reference.to(row))
    return not bool((row.abs() >= least).any())  # subnormal numbers count as zero


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
    out = torch.empty(rows.d, dtype=torch.float32, device="cpu")
    coords = None if coords is None else coords.float()
    strips = range(0, rows.d, sorting_network.WIDTH)

    def part(some: range) -> None:
        reduce = sorting_network.Reducer(rule, len(rows) if coords is None else len(coords))
        with sorting_network.subnormals_as_zero() as able, np.errstate(over="ignore", invalid="ignore"):
            if coords is None and not able:
                _refuse_what_screening_finds(rows)
            for start in some:
                columns = slice(start, min(start + sorting_network.WIDTH, rows.d))
                points, result = rows.block(columns.start, columns.stop), out[columns].numpy()
                if coords is not None:
                    points = exact.mixed(coords, points, reference, columns)
                elif not sorting_network.finite([*points.numpy()], result):
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
