"""Processor time of aggregation rules and of the Gram matrix as a multiple of `rows.mean(0)`.

    python benchmarks/bench_multiples.py
    VARANGIAN_KERNELS=v3 python benchmarks/bench_multiples.py
    python benchmarks/bench_multiples.py --common 10 --sizes 15x1000000 50x1000000 500x100000 --rules gram

Everything takes turns on one thread with the mean of the same rows, in processor time of the process, so
that other processes disturb little. Medians of the ratios to the mean just before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from varangian.aggregators import NNM, Aggregator, Flag, Krum, MeaMed, Median, Rows, TrimmedMean
from varangian.aggregators.gram import Gram

SIZES = ("15x1000000", "50x1000000", "15x11000000")


def contenders(n: int) -> dict[str, Callable[[Tensor], Any]]:
    f = max(1, (n - 3) // 4)
    return {
        "median": Aggregator(Median()),
        "trimmed mean": Aggregator(TrimmedMean(f=f)),
        "MeaMed": Aggregator(MeaMed(f=f)),
        "gram": lambda rows: Gram.of(Rows.of(rows)).sqdist,
        "Krum": Aggregator(Krum(f=f)),
        "Flag": Aggregator(Flag()),
        "NNM + median": Aggregator(Median(), mix=(NNM(f=f),)),
    }


def taken(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(rows: Tensor, chosen: dict[str, Callable[[Tensor], Any]], repeat: int) -> dict[str, float]:
    """Medians of the ratios, after one call that warms up; the mean itself in milliseconds."""
    found: dict[str, list[float]] = {"mean(0), ms": [], **{name: [] for name in chosen}}
    for turn in range(repeat + 1):
        for name, rule in chosen.items():
            mean = taken(lambda: rows.mean(dim=0))
            time_of_rule = taken(partial(rule, rows))
            if turn:
                found["mean(0), ms"].append(1e3 * mean)
                found[name].append(time_of_rule / mean)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Processor time of rules as a multiple of rows.mean(0).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="NxD", help="rows x columns")
    parser.add_argument("--rules", nargs="+", choices=[*contenders(15)], default=[*contenders(15)])
    parser.add_argument("--common", type=float, default=0, help="length of a part that all rows share")
    parser.add_argument("--repeat", type=int, default=7, help="turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for size in args.sizes:
        n, d = map(int, size.split("x"))
        rows = torch.randn(n, d)
        if args.common:
            rows += args.common * torch.randn(d)
        chosen = {name: rule for name, rule in contenders(n).items() if name in args.rules}
        for name, value in ratios(rows, chosen, args.repeat).items():
            print(f"{size:14}{name:16}{value:8.2f}", flush=True)
        del rows


if __name__ == "__main__":
    main()
