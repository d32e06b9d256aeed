"""The device side of `gpu`, in Triton: compiled at the first call, so this module needs `triton`.

Each program reads tiles of columns. A row is found at `base` plus its entry in `offsets`, in elements:
rows of one matrix and rows that lie anywhere are the same thing. Offsets are multiples of ALIGN.
A program stores in `bad` whether it read, or made, a number that is not finite.

n  rows        k  points made of rows      M  values of a column
d  columns     r  the reference
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _flushed(x, tiny):
    """Subnormal numbers count as zero."""
    return tl.where(tl.abs(x) < tiny, 0.0, x)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")  # NaN is not


@triton.jit
def _tile(base, offsets, i, n, c, d, tiny, ALIGN: tl.constexpr):
    """Rows i, columns c, as float32; zeros outside."""
    start = tl.multiple_of(tl.load(offsets + i, mask=i < n, other=0), ALIGN)
    inside = (i < n)[:, None] & (c < d)[None, :]
    x = tl.load(base + start[:, None] + c[None, :], mask=inside, other=0.0)
    return _flushed(x.to(tl.float32), tiny)


@triton.jit
def screen(base, offsets, bad, subnormal, d, span, tiny, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """Screen one row and one span of columns: is an entry not finite, is one subnormal."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    start = tl.multiple_of(tl.load(offsets + row), ALIGN)
    infinite = tl.zeros((BLOCK,), tl.int32)
    small = tl.zeros((BLOCK,), tl.int32)
    for first in range(part * span, tl.minimum(part * span + span, d), BLOCK):
        c = first + tl.arange(0, BLOCK)
        x = tl.load(base + start + c, mask=c < d, other=0.0).to(tl.float32)
        infinite = tl.where(_finite(x), infinite, 1)
        small = tl.where((x != 0) & (tl.abs(x) < tiny), 1, small)
    place = row * tl.num_programs(1) + part
    tl.store(bad + place, tl.max(infinite, axis=0))
    tl.store(subnormal + place, tl.max(small, axis=0))


@triton.jit
def _origins(base, offsets, parents, about, i, n, c, d, tiny, ALIGN: tl.constexpr):
    """The parents of rows i, columns c, or the reference where they have none."""
    p = tl.load(parents + i, mask=i < n, other=-1)
    own = p >= 0
    start = tl.multiple_of(tl.load(offsets + p, mask=own, other=0), ALIGN)
    inside = own[:, None] & (c < d)[None, :]
    x = tl.load(base + start[:, None] + c[None, :], mask=inside, other=0.0)
    return tl.where(own[:, None], _flushed(x.to(tl.float32), tiny), about[None, :])


@triton.jit
def gram(
    base,
    offsets,
    r,
    parents,
    out,
    n,
    d,
    step,
    span,
    slice,
    tiny,
    REFERENCE: tl.constexpr,
    PARENTS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of (z_i, r) over one span of columns: (n+1, n+1) of its own for every program.

    z_i is x_i - r, or x_i - x_p if row i has a parent p in this slice. Tiles of BLOCK columns are
    multiplied in float32 and added in float64. What is below the diagonal is the mirror of what is above.
    """
    part = tl.program_id(0)
    first = tl.program_id(1)
    second = tl.program_id(2)
    if second >= first:
        i = first * TILE + tl.arange(0, TILE)
        j = second * TILE + tl.arange(0, TILE)
        products = tl.zeros((TILE, TILE), tl.float64)
        cross = tl.zeros((TILE,), tl.float64)
        squares = tl.zeros((BLOCK,), tl.float64)
        begin = part * step
        own = parents
        if PARENTS:
            own = parents + (begin // slice).to(tl.int64) * n
        for start in range(begin, tl.minimum(begin + span, d), BLOCK):
            c = start + tl.arange(0, BLOCK)
            x = _tile(base, offsets, i, n, c, d, tiny, ALIGN)
            about = tl.zeros((BLOCK,), tl.float32)
            if REFERENCE:
                about = tl.load(r + c, mask=c < d, other=0.0)
            if PARENTS:
                x = x - _origins(base, offsets, own, about, i, n, c, d, tiny, ALIGN)
            elif REFERENCE:
                x = x - about[None, :]
            if REFERENCE:
                x = tl.where((i < n)[:, None], x, 0.0)
                cross += tl.sum(x * about[None, :], axis=1).to(tl.float64)
                squares += (about * about).to(tl.float64)
            if TILES == 1:
                y = x
            else:
                y = _tile(base, offsets, j, n, c, d, tiny, ALIGN)
                if PARENTS:
                    y = y - _origins(base, offsets, own, about, j, n, c, d, tiny, ALIGN)
                elif REFERENCE:
                    y = y - about[None, :]
                if REFERENCE:
                    y = tl.where((j < n)[:, None], y, 0.0)
            products += tl.dot(x, tl.trans(y), input_precision=PRECISION).to(tl.float64)
        mine = out + part.to(tl.int64) * (n + 1) * (n + 1)
        inside = (i < n)[:, None] & (j < n)[None, :]
        tl.store(mine + i[:, None] * (n + 1) + j[None, :], products, mask=inside)
        if first == second:
            tl.store(mine + i * (n + 1) + n, cross, mask=i < n)
            tl.store(mine + n * (n + 1) + i, cross, mask=i < n)
        else:
            tl.store(mine + j[None, :] * (n + 1) + i[:, None], products, mask=inside)
        if second == 0:
            tl.store(mine + n * (n + 1) + n, tl.sum(squares, axis=0))


@triton.jit
def added(parts, out, count, group, size, TOTAL: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    """Adds parts of `size` numbers in order, `group` at a time; to what is in `out` already if TOTAL."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    which = tl.program_id(1)
    own = out + which.to(tl.int64) * size + place
    total = tl.zeros((BLOCK,), tl.float64)
    if TOTAL:
        total = tl.load(own, mask=place < size, other=0.0)
    end = tl.minimum(which * group + group, count)
    for start in range(which * group, end, UNROLL):
        for u in tl.static_range(UNROLL):
            part = start + u
            inside = (place < size) & (part < end)
            total += tl.load(parts + part.to(tl.int64) * size + place, mask=inside, other=0.0)
    tl.store(own, total, mask=place < size)


@triton.jit
def combine(
    base,
    offsets,
    weights,
    r,
    out,
    bad,
    n,
    d,
    k,
    tiny,
    REFERENCE: tl.constexpr,
    POINTS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """(k, n+1) weights times (x_1, ..., x_n, r), POINTS of them at a time; every row is read once."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    point = tl.program_id(1) * POINTS + tl.arange(0, POINTS)
    total = tl.zeros((POINTS, BLOCK), tl.float32)
    for start in range(0, n, UNROLL):
        for u in tl.static_range(UNROLL):
            i = start + u
            at = tl.multiple_of(tl.load(offsets + i, mask=i < n, other=0), ALIGN)
            x = tl.load(base + at + c, mask=(c < d) & (i < n), other=0.0).to(tl.float32)
            weight = tl.load(weights + point * (n + 1) + i, mask=(point < k) & (i < n), other=0.0)
            total += weight[:, None] * _flushed(x, tiny)[None, :]
    if REFERENCE:
        weight = tl.load(weights + point * (n + 1) + n, mask=point < k, other=0.0)
        total += weight[:, None] * tl.load(r + c, mask=c < d, other=0.0)[None, :]
    inside = (point < k)[:, None] & (c < d)[None, :]
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + point.to(tl.int64)[:, None] * d + c[None, :], rounded, mask=inside)
    wrong = tl.where(inside & ~_finite(rounded.to(tl.float32)), 1, 0)
    flag = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(bad + flag, tl.max(tl.max(wrong, axis=1), axis=0))


@triton.jit
def _lanes(base, offsets, d, M: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """The columns of this program, their M values, and zeros that are NaN where a value is not finite."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lanes = ()
    seen = tl.zeros(c.shape, tl.float32)
    for i in tl.static_range(M):
        at = tl.multiple_of(tl.load(offsets + i), ALIGN)
        x = tl.load(base + at + c, mask=c < d, other=0.0).to(tl.float32)
        seen += x * 0.0
        lanes = lanes + (x,)
    return c, lanes, seen


@triton.jit
def _exchanged(lanes, LOW: tl.constexpr, HIGH: tl.constexpr):
    a = lanes[LOW]
    b = lanes[HIGH]
    between = lanes[LOW + 1 : HIGH]
    return lanes[:LOW] + (tl.minimum(a, b),) + between + (tl.maximum(a, b),) + lanes[HIGH + 1 :]


@triton.jit
def _sorted(lanes, NETWORK: tl.constexpr):
    """Sort the lanes; the compiler leaves out steps on which no wanted rank depends."""
    for s in tl.static_range(len(NETWORK)):
        lanes = _exchanged(lanes, NETWORK[s][0], NETWORK[s][1])
    return lanes


@triton.jit
def _mean(lanes, tiny, LO: tl.constexpr, HI: tl.constexpr):
    # Flushing keeps the order: what is not in the sum need not be flushed.
    total = _flushed(lanes[LO], tiny)
    for rank in tl.static_range(LO + 1, HI):
        total += _flushed(lanes[rank], tiny)
    return total / (HI - LO)


@triton.jit
def _told(out, bad, value, seen, c, d):
    rounded = (value + seen).to(out.dtype.element_ty)
    tl.store(out + c, rounded, mask=c < d)
    wrong = tl.where((c < d) & ~_finite(rounded.to(tl.float32)), 1, 0)
    tl.store(bad + tl.program_id(0), tl.max(wrong, axis=0))


@triton.jit
def window(
    base,
    offsets,
    out,
    bad,
    d,
    tiny,
    LO: tl.constexpr,
    HI: tl.constexpr,
    M: tl.constexpr,
    NETWORK: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """`order.Window` of each column."""
    c, lanes, seen = _lanes(base, offsets, d, M, BLOCK, ALIGN)
    lanes = _sorted(lanes, NETWORK)
    _told(out, bad, _mean(lanes, tiny, LO, HI), seen, c, d)


@triton.jit
def _nearer(kept, lane, centre, tiny, SLOT: tl.constexpr):
    value = _flushed(lane, tiny)
    least = _flushed(kept[SLOT], tiny)
    chosen = tl.where(value - centre < centre - least, value, least)
    return kept[:SLOT] + (chosen,) + kept[SLOT + 1 :]


@triton.jit
def nearest(
    base,
    offsets,
    out,
    bad,
    d,
    tiny,
    COUNT: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
    M: tl.constexpr,
    NETWORK: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """`order.Nearest` of each column, in the same steps."""
    c, lanes, seen = _lanes(base, offsets, d, M, BLOCK, ALIGN)
    lanes = _sorted(lanes, NETWORK)
    centre = _mean(lanes, tiny, LO, HI)
    kept = lanes[:COUNT]
    for i in tl.static_range(M - COUNT):
        kept = _nearer(kept, lanes[COUNT + i], centre, tiny, i % COUNT)
    _told(out, bad, _mean(kept, tiny, 0, COUNT), seen, c, d)


@triton.jit
def majority(
    base,
    offsets,
    out,
    bad,
    d,
    tiny,
    scale,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """`order.Majority` of each column."""
    c, lanes, seen = _lanes(base, offsets, d, M, BLOCK, ALIGN)
    votes = tl.zeros(c.shape, tl.int32)
    for i in tl.static_range(M):
        votes += tl.where(lanes[i] >= tiny, 1, 0) - tl.where(lanes[i] <= -tiny, 1, 0)
    sign = tl.where(votes > 0, 1.0, tl.where(votes < 0, -1.0, 0.0))
    _told(out, bad, scale * sign, seen, c, d)


@triton.jit
def _tags(weights, c, M: tl.constexpr):
    """The weights of the M values of each column, in units."""
    tags = ()
    for i in tl.static_range(M):
        tags = tags + (tl.zeros(c.shape, tl.int32) + tl.load(weights + i),)
    return tags


@triton.jit
def _put(lanes, low, high, LOW: tl.constexpr, HIGH: tl.constexpr):
    return lanes[:LOW] + (low,) + lanes[LOW + 1 : HIGH] + (high,) + lanes[HIGH + 1 :]


@triton.jit
def weighted(
    base,
    offsets,
    out,
    bad,
    d,
    tiny,
    weights,
    low,
    high,
    slack,
    KIND: tl.constexpr,
    M: tl.constexpr,
    NETWORK: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """`weighted_order.Plan` of each column; KIND: 0 is a window, 1 a median, 2 a lower median."""
    c, lanes, seen = _lanes(base, offsets, d, M, BLOCK, ALIGN)
    tags = _tags(weights, c, M)
    for s in tl.static_range(len(NETWORK)):
        a = lanes[NETWORK[s][0]]
        b = lanes[NETWORK[s][1]]
        p = tags[NETWORK[s][0]]
        q = tags[NETWORK[s][1]]
        swap = b < a
        lanes = _put(lanes, tl.where(swap, b, a), tl.where(swap, a, b), NETWORK[s][0], NETWORK[s][1])
        tags = _put(tags, tl.where(swap, q, p), tl.where(swap, p, q), NETWORK[s][0], NETWORK[s][1])
    total = tl.zeros(c.shape, tl.int32)
    if KIND == 0:
        found = tl.zeros(c.shape, tl.float32)
        taken = tl.zeros(c.shape, tl.float32)
        for i in tl.static_range(M):
            after = total + tags[i]
            kept = tl.minimum(after, high) - tl.maximum(total, low)
            part = tl.where(kept > slack, kept.to(tl.float32) / (high - low), 0.0)
            found += part * _flushed(lanes[i], tiny)
            taken += part
            total = after
        mean = found / taken
        most = 3.4028234663852886e38
        _told(out, bad, tl.minimum(tl.maximum(mean, -most), most), seen, c, d)
    else:
        lower = _flushed(lanes[0], tiny)
        upper = lower
        for i in tl.static_range(M):
            value = _flushed(lanes[i], tiny)
            lower = tl.where(total < low, value, lower)
            upper = tl.where(total <= high, value, upper)
            total += tags[i]
        if KIND == 1:
            lower = lower / 2 + upper / 2
        _told(out, bad, lower, seen, c, d)
