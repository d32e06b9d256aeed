"""Sorting networks: which pairs of rows to compare, in which order, for any number of rows.

Batcher's odd-even merge sort ("Sorting networks and their applications", 1968). Blocks of rows are sorted
by straight-line code (`c/networks.h`, which this module writes) and merged from a table, which leaves out
every comparison that the wanted ranks do not need.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from varangian.aggregators.numeric.order import comparators, network

HEADER = Path(__file__).with_name("c") / "networks.h"
NARROW, WIDE = 16, 32
"""Rows are sorted by blocks of WIDE, and what is left by blocks of NARROW: compiling a network for every
number up to WIDE would take a minute."""


@cache
def merges(n: int, summed: tuple[int, int] | None, wide: int = WIDE) -> tuple[tuple[int, int, int], ...]:
    """The comparators that merge sorted blocks: (low, high, kind).

    `wide`: rows are sorted by blocks of so many already; only what is left by blocks of NARROW.

    `summed`: ranks (first, end) of which only the sum is wanted, or None when every rank is. Kind 0 writes
    both rows, 1 the smaller only, 2 the larger only. A comparison whose two results are only summed, or
    both ignored, changes nothing and is left out.
    """
    first, end = summed or (0, n)
    wanted = ["summed" if summed and first <= i < end else "" if summed else "rank" for i in range(n)]
    kept: list[tuple[int, int, int]] = []
    for run, low, high in reversed(list(comparators(n))):
        if run < NARROW or (run < wide and low < n // wide * wide):
            continue
        if wanted[low] == wanted[high] != "rank":
            continue
        kept.append((low, high, 0 if wanted[low] and wanted[high] else 1 if wanted[low] else 2))
        wanted[low] = wanted[high] = "rank"
    return tuple(reversed(kept))


def header() -> str:
    """The text of networks.h: the comparators of each block size as straight-line code."""
    sizes = (*range(1, NARROW + 1), WIDE)
    lines = ["/* Written by networks.py. X(a, b) leaves the smaller of two rows in a, the larger in b. */"]
    for n in sizes:
        lines.append(f"#define NETWORK_{n} " + " ".join(f"X({a},{b})" for _, a, b in comparators(n)))
        lines.append(f"#define EACH_{n}(F) " + " ".join(f"F({i})" for i in range(n)))
    lines.append("#define EACH_SIZE(F) " + " ".join(f"F({n})" for n in sizes))
    lines.append("#define EACH_NARROW(F) " + " ".join(f"F({n})" for n in sizes[:-1]))
    lines.append("/* What the middle one or two need of it. MIN and MAX write to one of the rows only. */")
    few = range(2, NARROW + 1)
    lines += [f"#define MIDDLE_{n} " + _text(network(n, (n - 1) // 2, n // 2)) for n in few]
    lines.append("#define EACH_MIDDLE(F) " + " ".join(f"F({n}, {(n - 1) // 2}, {n // 2})" for n in few))
    return "\n".join(lines) + "\n"


def _text(steps: tuple[tuple[int, int, bool, bool], ...]) -> str:
    names = {(True, True): "X", (True, False): "MIN", (False, True): "MAX"}
    return " ".join(f"{names[low, high]}({a},{b})" for a, b, low, high in steps)


if __name__ == "__main__":
    HEADER.write_text(header())
