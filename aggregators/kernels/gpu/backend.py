"""Kernels in Triton for float32, bfloat16 and float16 rows on a GPU (`tiles`).

Nothing is screened in advance, as in `native`: a row that is not finite shows in the result, and the
function then raises `NotFinite`; subnormal numbers are read as zero. Every program writes sums of its own,
and they are added in one order: the same bits every time, also for columns that come in pieces. The rows
may lie anywhere on the device; nothing is copied unless a row is not contiguous. Under TRITON_INTERPRET=1
it takes rows on the CPU as well, slowly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor

from varangian.aggregators.kernels import blocked, centres
from varangian.aggregators.kernels import reference as exact
from varangian.aggregators.kernels.centres import Sums, about_reference
from varangian.aggregators.kernels.gpu.pointer_table import Table
from varangian.aggregators.kernels.native import KINDS, SLICE, NotFinite
from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window, network
from varangian.aggregators.numeric.weighted_order import FEW, WeightedOrder
from varangian.aggregators.rows import Rows

NAME = "triton"
DETECTS_INVALID = True

TAKEN = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (3, 3)
"""The first Triton whose functions take tuples of blocks apart and put them together."""
MOST_ROWS = 1024
LONGEST = 2**31 - 2**20
"""Columns are counted in 32 bits."""
LANES = 64
"""Values of a column that fit the registers; more are sorted by torch, block by block."""
PRECISION = "ieee"
"""Of the products of `gram`: float32, never TF32."""
SPAN = 4096
"""Columns of one program of `gram`."""
SCRATCH = 1 << 26
"""Bytes of partial sums at most, where they are more than those of one slice."""
CHUNK = 1 << 18
"""Columns of mixed points that are made before they are sorted: few enough for the cache."""


def refuses(rows: Rows) -> str | None:
    if rows.device.type != "cuda" and not interpreted():
        return f"it takes rows on a CUDA device, not on {rows.device}"
    if rows.dtype not in TAKEN:
        return f"{rows.dtype} rows would lose their precision in float32 products"
    if len(rows) > MOST_ROWS:
        return f"it takes at most {MOST_ROWS} rows, not {len(rows)}"
    if rows.d > LONGEST:
        return f"it takes at most {LONGEST} columns, not {rows.d}"
    return missing()


def interpreted() -> bool:
    """Whether Triton was told to run without a device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def missing() -> str | None:
    """Why no kernel can be compiled here."""
    if find_spec("triton") is None:
        return "triton is not installed"
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    wanted = ".".join(map(str, OLDEST))
    return f"it needs triton {wanted} or newer, not {triton.__version__}" if found < OLDEST else None


@cache
def _tiles() -> Any:
    """The kernels, imported on first use: `varangian.aggregators` must not import triton."""
    from varangian.aggregators.kernels.gpu import tiles

    return tiles


def screen(rows: Rows) -> tuple[Tensor, Tensor]:
    """As `reference.screen`; of these types the square of any finite number fits float64."""
    table, parts = Table.of(rows), ceil(rows.d / SLICE)
    flags = torch.empty(2, len(rows), parts, dtype=torch.int32, device=rows.device)
    with torch.cuda.device_of(table.base):
        _tiles().screen[(len(rows), parts)](
            table.base,
            table.offsets,
            *flags.unbind(),
            rows.d,
            SLICE,
            table.tiny,
            BLOCK=1024,
            ALIGN=table.align,
        )
    bad, subnormal = flags.any(dim=2).cpu()
    return ~bad, subnormal


def gram(rows: Rows, reference: Tensor | None) -> Tensor:
    return about_reference(centred(rows, reference))


def centred(rows: Rows, reference: Tensor | None) -> Tensor:
    return finish(accumulate(Sums.nothing(rows), rows, reference), rows.d, lambda: rows, reference)


def accumulate(sums: Sums, rows: Rows, reference: Tensor | None) -> Sums:
    """As in `reference`; sums of spans are added to sums of slices, and these to the total, in one order.

    The CPU does not wait for the device, which itself chooses the parents of each slice from its first span
    and stores whether distances are lost all the same.
    """
    sums.alone = False  # products of tiles depend on how many rows there are
    size = (len(rows) + 1) ** 2
    width = SLICE * max(1, SCRATCH // (8 * size * (SLICE // SPAN)))
    for start in range(0, rows.d, width):
        columns = slice(start, start + width)
        some = Rows(tuple(v[columns] for v in rows.vectors))
        about = None if reference is None else reference[columns]
        first = _measured(some, about, None, SLICE)
        parents = centres.choose_parents(first)
        parts = _measured(some, about, parents, SPAN)
        slices = torch.empty(len(first), size, dtype=torch.float64, device=rows.device)
        _add(parts, slices, SLICE // SPAN, False)
        found, lost = centres.about_parents(slices.view_as(first), parents)
        _add(found, sums.on_device(len(rows)).view(1, -1), len(found), True)
        sums.lost = lost if sums.lost is None else sums.lost | lost
    return sums


def _measured(rows: Rows, reference: Tensor | None, parents: Tensor | None, step: int) -> Tensor:
    """Inner products of (z_1, ..., z_n, r), or zeros for r, over one span every `step` columns.

    `parents` (slices, n) are as in `centres`, and no parent has a parent; (spans, n+1, n+1).
    """
    n, table, spans = len(rows), Table.of(rows), ceil(rows.d / step)
    tile = min(64, max(16, _power(n)))
    tiles = ceil(n / tile)
    parts = torch.empty(spans, n + 1, n + 1, dtype=torch.float64, device=rows.device)
    with torch.cuda.device_of(table.base):
        _tiles().gram[(spans, tiles, tiles)](
            table.base,
            table.offsets,
            table.base if reference is None else reference.contiguous(),
            table.offsets if parents is None else parents,
            parts,
            n,
            rows.d,
            step,
            SPAN,
            SLICE,
            table.tiny,
            REFERENCE=reference is not None,
            PARENTS=parents is not None,
            TILE=tile,
            TILES=tiles,
            BLOCK=64,
            ALIGN=table.align,
            PRECISION=PRECISION,
        )
    return parts


def _add(parts: Tensor, out: Tensor, group: int, total: bool) -> None:
    """Adds `group` after `group` of parts (p, ...) to rows of `out` (ceil(p / group), size), in order."""
    size = out.shape[1]
    with torch.cuda.device_of(out):
        _tiles().added[(ceil(size / 128), len(out))](
            parts, out, len(parts), group, size, TOTAL=total, UNROLL=16, BLOCK=128
        )


def finish(sums: Sums, d: int, whole: Callable[[], Rows], reference: Tensor | None) -> Tensor:
    products = sums.products()
    # The square of a finite float32 may overflow as well; then the exact form says which it was.
    kept = sums.lost is None or not bool(sums.lost)
    if kept and bool(products.diagonal().isfinite().all()):
        return blocked.checked(products, d, whole, reference, _exact)
    return _exact(whole(), reference)


def _exact(rows: Rows, reference: Tensor | None) -> Tensor:
    """In float64 on the device, with subnormal numbers as zero."""
    tiny = rows.least_normal
    flushed = Rows(tuple(v.masked_fill(v.abs() < tiny, 0) for v in rows.vectors))
    found = exact.centred(flushed, reference)
    if not bool(found.diagonal().isfinite().all()):
        raise NotFinite
    return found


def combine(coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = torch.empty(len(coords), rows.d, dtype=rows.dtype, device=rows.device)
    _checked(_mixed(coords, rows, reference, out))
    return out


def _mixed(coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor) -> Tensor:
    """Write points (k, d) from coordinates (k, n+1); returns flags of those that are not finite."""
    used = coords[:, :-1].any(dim=0).nonzero().flatten().tolist()  # Krum: the others need not be read
    kept = used or [0]
    weights = coords[:, [*kept, -1]].float().contiguous().to(rows.device, non_blocking=True)
    table, k = Table.of(rows.keep(kept)), len(coords)
    points = min(16, _power(k))
    width = 1024 // points
    grid = ceil(rows.d / width), ceil(k / points)
    bad = torch.empty(grid[0] * grid[1], dtype=torch.int32, device=rows.device)
    added = reference is not None and bool(coords[:, -1].any())
    with torch.cuda.device_of(table.base):
        _tiles().combine[grid](
            table.base,
            table.offsets,
            weights,
            reference.contiguous() if reference is not None and added else weights,
            out,
            bad,
            len(kept),
            rows.d,
            k,
            table.tiny,
            REFERENCE=added,
            POINTS=points,
            UNROLL=min(8, _power(len(kept))),
            BLOCK=width,
            ALIGN=table.align,
        )
    return bad


def columnwise(
    rule: Callable[[Tensor], Tensor], coords: Tensor | None, rows: Rows, reference: Tensor | None
) -> Tensor:
    """A columnwise rule over the rows, or over the points with the given coordinates: (d,).

    A rule that is no `Order`, or has more than 64 values (48 with weights), is left to torch, which needs
    finite rows and takes subnormal numbers as they are; they cost a GPU nothing.
    """
    points = len(rows) if coords is None else len(coords)
    if not isinstance(rule, Order | WeightedOrder) or points > (LANES if isinstance(rule, Order) else FEW):
        if not bool(screen(rows)[0].all()):
            raise NotFinite
        by = _by_sorting(rule) if isinstance(rule, Window) else rule
        return blocked.columnwise(by, coords, rows, reference)
    out = torch.empty(rows.d, dtype=rows.dtype, device=rows.device)
    if coords is None:
        _checked(_reduced(rule, rows, out))
        return out
    flags: list[Tensor] = []
    for start in range(0, rows.d, CHUNK):
        columns = slice(start, start + CHUNK)
        some = Rows(tuple(v[columns] for v in rows.vectors))
        about = None if reference is None else reference[columns]
        made = torch.empty(points, some.d, dtype=torch.float32, device=rows.device)
        flags += [_mixed(coords, some, about, made), _reduced(rule, Rows.of(made), out[columns])]
    _checked(torch.cat(flags))
    return out


def _reduced(rule: Order | WeightedOrder, rows: Rows, out: Tensor) -> Tensor:
    """Write the result of the rule (d,); returns flags of columns that are not finite."""
    table, m = Table.of(rows), len(rows)
    block = 512 if m <= 16 else 256 if m <= 32 else 128
    bad = torch.empty(ceil(rows.d / block), dtype=torch.int32, device=rows.device)
    verb, details = _described(rule, m, rows.device)
    shape = {"M": m, "BLOCK": block, "ALIGN": table.align}
    with torch.cuda.device_of(table.base):
        getattr(_tiles(), verb)[(len(bad),)](
            table.base, table.offsets, out, bad, rows.d, table.tiny, **details, **shape
        )
    return bad


def _described(rule: Order | WeightedOrder, m: int, device: torch.device) -> tuple[str, dict[str, Any]]:
    """The kernel for a rule, and its arguments."""
    if isinstance(rule, WeightedOrder):
        weights, low, high, slack, kind = rule.plan()
        units = torch.tensor(weights, dtype=torch.int32, device="cpu").to(device, non_blocking=True)
        bounds = {"weights": units, "low": low, "high": high, "slack": slack}
        return "weighted", {**bounds, "KIND": KINDS.index(kind), "NETWORK": _pairs(m, 0, m - 1)}
    if isinstance(rule, Majority):
        return "majority", {"scale": float(rule.scale)}
    window = {"LO": rule.lo, "HI": rule.hi}
    if isinstance(rule, Nearest):
        return "nearest", {**window, "COUNT": rule.count, "NETWORK": _pairs(m, 0, m - 1)}
    return "window", {**window, "NETWORK": _pairs(m, rule.lo, rule.hi - 1)}


@cache
def _pairs(m: int, first: int, last: int) -> tuple[tuple[int, int], ...]:
    return tuple((low, high) for low, high, *_ in network(m, first, last))


def _by_sorting(rule: Window) -> Callable[[Tensor], Tensor]:
    return lambda block: block.sort(dim=0).values[rule.lo : rule.hi].mean(dim=0)


def _checked(bad: Tensor) -> None:
    if bool(bad.any()):
        raise NotFinite


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
