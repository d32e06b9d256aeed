"""Kernels in C for float32 rows on a CPU, built at install time where there is a compiler.

Nothing is screened in advance: a row that is not finite shows in the result, and the function then raises
`NotFinite`; subnormal numbers are read as zero by the processor. The columns are cut into slices of one
width, whatever the number of threads, and partial results are added in the order of the slices: the same
bits on one core as on many. Calls go through ctypes, which releases the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.kernels import blocked, centres, networks
from varangian.aggregators.kernels.blocked import screen
from varangian.aggregators.kernels.centres import Parents, Sums
from varangian.aggregators.kernels.cores import cores, pool
from varangian.aggregators.kernels.library import function, level, library, opened
from varangian.aggregators.kernels.reference import NotFinite
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.order import Majority, Nearest, Order
from varangian.aggregators.numeric.weighted_order import WeightedOrder, is_wide
from varangian.aggregators.rows import Rows

__all__ = [
    "DETECTS_INVALID",
    "NAME",
    "NotFinite",
    "accumulate",
    "centred",
    "columnwise",
    "combine",
    "finish",
    "gram",
    "refuses",
    "screen",
]

T = TypeVar("T")

NAME = "native"
DETECTS_INVALID = True
MOST_ROWS = 500
"""Rows that the C side has room for on its stack."""
FLOAT = 4
"""Bytes of a number."""
KINDS = ("window", "median", "lower median")
"""Statistics by weight, as the C side counts them."""
SLICE = 1 << 16
"""Columns of one call: a multiple of every strip of the C side."""


def refuses(rows: Rows) -> str | None:
    if library() is None:
        return f"there are no kernels in C: {opened()[1]}"
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return f"it takes float32 rows on the CPU, not {rows.dtype} on {rows.device}"
    if len(rows) > MOST_ROWS:
        return f"it takes at most {MOST_ROWS} rows, not {len(rows)}"
    return None


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    return centres.about_reference(centred(rows, reference))


def centred(rows: Rows, reference: Tensor | None) -> Tensor:
    return finish(accumulate(Sums.nothing(rows), rows, reference), rows.d, lambda: rows, reference)


def accumulate(sums: Sums, rows: Rows, reference: Tensor | None) -> Sums:
    """The sum of a pair depends on no other row, except in slices whose rows have parents."""
    rows, reference = rows.contiguous, _float32(reference)
    addresses = rows.addresses

    def part(start: int, stop: int) -> tuple[Array, Parents]:
        def measure(parents: Parents) -> Array:
            return _products("gram", addresses, reference, start, stop, parents)[0]

        first, parents, lost = _first(addresses, reference, start, stop)
        return centres.keep_distances(measure, parents, first) if lost else (first, parents)

    for products, parents in _over_slices(rows.d, part):
        sums.add(products, parents)
    return sums


def finish(sums: Sums, d: int, whole: Callable[[], Rows], reference: Tensor | None) -> Tensor:
    # The square of a finite float32 may overflow as well; then the exact form says which it was.
    products = sums.products()
    if np.isfinite(products.numpy().diagonal()).all():
        return blocked.checked(products, d, whole, reference, _exact)
    return _exact(whole(), reference)


def _exact(rows: Rows, reference: Tensor | None) -> Tensor:
    rows, reference = rows.contiguous, _float32(reference)
    addresses, sums = rows.addresses, Sums.nothing(rows)

    def part(start: int, stop: int) -> Array:
        return _products("gram_exact", addresses, reference, start, stop, centres.none(len(rows)))[0]

    for products in _over_slices(rows.d, part):
        sums.plain += torch.from_numpy(products)
    if not bool(sums.plain.diagonal().isfinite().all()):
        raise NotFinite
    return sums.products()


def _first(
    addresses: NDArray[np.int64], reference: Tensor | None, start: int, stop: int
) -> tuple[Array, Parents, bool]:
    """Products, the parents that the C side chose for them if any, and whether distances are lost."""
    parents = centres.none(len(addresses))
    products, lost = _products("gram", addresses, reference, start, stop, parents)
    return products, parents, lost


def _products(
    verb: str,
    addresses: NDArray[np.int64],
    reference: Tensor | None,
    start: int,
    stop: int,
    parents: Parents,
) -> tuple[Array, bool]:
    """Inner products of (z_1, ..., z_n, r), zeros for r if there is none, and whether distances are lost.

    Where no row has a parent the C side may choose some and write them to `parents`.
    """
    n, at = len(addresses), None if reference is None else _address(reference, start)
    given = n + (reference is not None)
    out, pointers = np.zeros((given, given)), addresses + FLOAT * start
    found = _call(verb, pointers.ctypes.data, at, n, stop - start, parents.ctypes.data, out.ctypes.data)
    if found < 0:
        raise MemoryError(f"{verb} found no memory for {n} rows.")
    if reference is not None:
        return out, bool(found)
    products = np.zeros((n + 1, n + 1))
    products[:n, :n] = out
    return products, bool(found)


def combine(coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor | None = None) -> Tensor:
    d = rows.d
    rows, weights = _points(coords, rows, reference)
    used = np.flatnonzero(weights.any(axis=0))  # Krum: the other rows need not be read
    if len(used) == 0:
        return (
            torch.zeros(len(coords), d, dtype=torch.float32, device="cpu") if out is None else out.zero_()
        )
    first, weights = rows.addresses[used], np.ascontiguousarray(weights[:, used])
    at = weights.ctypes.data
    out = torch.empty(len(coords), d, dtype=torch.float32, device="cpu") if out is None else out

    def part(start: int, stop: int) -> int:
        pointers, shape = first + FLOAT * start, (len(used), stop - start, len(coords), d)
        return _call("combine", pointers.ctypes.data, at, *shape, _address(out, start))

    if any(_over_slices(d, part)):
        raise NotFinite
    return out


def columnwise(
    rule: Callable[[Tensor], Tensor], coords: Tensor | None, rows: Rows, reference: Tensor | None
) -> Tensor:
    if not isinstance(rule, Order | WeightedOrder):
        finite, subnormal = screen(rows)
        if not bool(finite.all()) or bool(subnormal.any()):
            raise NotFinite
        return blocked.columnwise(rule, coords, rows, reference)
    rows = rows.contiguous
    weights = None
    if coords is not None:
        rows, weights = _points(coords, rows, reference)
    points, at = (len(rows), None) if weights is None else (len(weights), weights.ctypes.data)
    out, first = torch.empty(rows.d, dtype=torch.float32, device="cpu"), rows.addresses
    verb, details = _described(rule, points)

    def part(start: int, stop: int) -> int:
        pointers, shape = first + FLOAT * start, (len(rows), stop - start, at, points)
        return _call(verb, pointers.ctypes.data, *shape, *details, _address(out, start))

    if any(_over_slices(rows.d, part)):
        raise NotFinite
    return out


def _described(rule: Order | WeightedOrder, points: int) -> tuple[str, tuple[Any, ...]]:
    """The C function for a rule on this many points, and its arguments."""
    if isinstance(rule, WeightedOrder):
        table, (tags, wide, *details) = _merges(points, None, networks.NARROW), _weighing(rule)
        arrays = tags.ctypes.data, None if wide is None else wide.ctypes.data
        return "weighted", (table.ctypes.data, len(table), *arrays, *details)
    if isinstance(rule, Majority):
        return "majority", (rule.scale,)
    count = rule.count if isinstance(rule, Nearest) else 0
    table = _merges(points, None if count else (rule.lo, rule.hi))
    return "columns", (table.ctypes.data, len(table), rule.lo, rule.hi, count)


@cache
def _merges(points: int, summed: tuple[int, int] | None, wide: int = networks.WIDE) -> NDArray[np.int32]:
    return np.array(networks.merges(points, summed, wide), dtype=np.int32).reshape(-1, 3)


@lru_cache(maxsize=64)
def _weighing(rule: WeightedOrder) -> tuple[NDArray[np.int32], Array | None, int, int, int, int]:
    """Tags of the points, their weights where a tag is a place, bounds, slack, and the kind of statistic.

    Units of 2^-50 are float64 numbers on the C side, whose sums are exact as well.
    """
    wide = is_wide(len(rule.p), torch.float32)
    weights, low, high, slack, kind = rule.plan(wide)
    tags = np.array(range(len(weights)) if wide else weights, dtype=np.int32)
    return tags, np.array(weights, dtype=np.float64) if wide else None, low, high, slack, KINDS.index(kind)


def _points(coords: Tensor, rows: Rows, reference: Tensor | None) -> tuple[Rows, NDArray[np.float32]]:
    """The rows, with the reference as one more where it has a coefficient; float32 coefficients of each."""
    rows, reference, weights = rows.contiguous, _float32(reference), coords.numpy()
    if reference is None or not weights[:, -1].any():
        weights = weights[:, :-1]
    else:
        rows = Rows((*rows.vectors, reference))
    with np.errstate(over="ignore"):  # what is too large for the type makes an update that is refused
        return rows, weights.astype(np.float32, order="C")


def _float32(reference: Tensor | None) -> Tensor | None:
    return None if reference is None else reference.to(torch.float32).contiguous()


def _over_slices(d: int, part: Callable[[int, int], T]) -> list[T]:
    """`part(start, stop)` of every slice, in order, on the threads that may be used."""
    slices = [(start, min(start + SLICE, d)) for start in range(0, d, SLICE)]
    threads = min(cores(), len(slices))
    if threads == 1:
        return [part(*each) for each in slices]
    return list(pool(threads).map(lambda each: part(*each), slices))


def _address(tensor: Tensor, start: int) -> int:
    return tensor.data_ptr() + FLOAT * start


def _call(verb: str, *args: Any) -> int:
    return function(verb, level())(*args)
