"""A Gram matrix kept up to date beside one measured anew, when k of n rows are replaced.

    python benchmarks/bench_updated.py
    python benchmarks/bench_updated.py --case 1000 100 62006 --common 10

Medians of single calls on one thread. What does not have the distances of the fresh one is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from varangian.aggregators import Rows
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import backend_for
from varangian.aggregators.streaming.updated import UpdatedGram, worthwhile

CASES = [(15, 2, 1_000_000), (100, 2, 1_000_000), (100, 10, 1_000_000), (400, 40, 200_000)] + [
    (1000, k, 62_006) for k in (10, 100)
]
ALLOWED = 2e-5
"""Relative difference of a squared distance: each side may err by half of it."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time a Gram matrix kept up to date.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--case", type=int, nargs=3, action="append", metavar=("N", "K", "D"), help="may be repeated"
    )
    parser.add_argument(
        "--common", type=float, default=0.0, help="length of what the rows share, in spreads"
    )
    parser.add_argument("--repeat", type=int, default=5, help="calls; medians are reported")
    return parser


def milliseconds(call: Callable[[], object], repeat: int) -> float:
    taken: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest relative difference of a squared distance."""
    n = len(wanted) - 1
    a, b = (Gram.about(lambda products=products: products, n).sqdist for products in (found, wanted))
    apart = ~torch.eye(n, dtype=torch.bool)
    return float(((a - b).abs() / b)[apart].max())


def timed(n: int, k: int, d: int, common: float, repeat: int) -> bool:
    """Prints one line; whether the distances agreed."""
    matrix = torch.randn(n, d) + common * torch.randn(d)
    rows, reference = Rows.of(matrix), matrix.mean(dim=0)
    kept, fresh = UpdatedGram(n), backend_for(rows)
    kept.products(rows, reference)

    def update() -> Tensor:
        for i in range(k):
            kept.mark_replaced(i * n // k)
        return kept.products(rows, reference)

    if (error := difference(update(), fresh.gram(rows, reference))) > ALLOWED:
        print(f"{n} x {d}: distances differ by {error:.1e}; not timed.", file=sys.stderr)
        return False
    mean = milliseconds(lambda: matrix.mean(dim=0), repeat)
    anew, updated = milliseconds(lambda: fresh.gram(rows, reference), repeat), milliseconds(update, repeat)
    advice = "yes" if worthwhile(n, k) else "no"
    print(
        f"{n:6}{k:6}{d:10}{mean:10.0f}{fresh.NAME:>10}{anew:8.0f}{updated:10.0f}{anew / updated:8.1f}x"
        f"{error:10.0e}{advice:>12}"
    )
    return True


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'n':>6}{'k':>6}{'d':>10}{'mean ms':>10}{'fresh':>10}{'ms':>8}{'updated':>10}", end="")
    print(f"{'faster':>9}{'differ':>10}{'worthwhile':>12}")
    agreed = [timed(*case, args.common, args.repeat) for case in args.case or CASES]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
