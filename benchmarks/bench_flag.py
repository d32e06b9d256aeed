"""The Flag Aggregator in Gram space, beside the d x n SVD that defines it and beside a plain mean.

    python benchmarks/bench_flag.py --json benchmarks/results/flag.json

All three run on the same float32 rows, by turns in one process, on one thread unless told otherwise.
Nothing is timed unless our update agrees with the SVD form in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Flag

AGREEMENT = 1e-4
"""Largest relative difference to the float64 SVD form at which a time means something."""
SLACK = 1e-7


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time the Flag Aggregator against its SVD form and against rows.mean(0).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=15, help="rows (workers)")
    parser.add_argument("--f", type=int, default=3, help="rows that are uniform noise")
    parser.add_argument("--d", type=int, default=1_000_000, help="columns (parameters)")
    parser.add_argument(
        "--iterations", type=int, default=1, help="reweightings, of ours and of the SVD form"
    )
    parser.add_argument("--repeat", type=int, default=15, help="turns; medians are reported")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seed", type=int, default=1, help="of the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    return parser


def gradients(n: int, f: int, d: int, seed: int) -> Tensor:
    """Honest rows of signal-to-noise ratio 1, and f rows of the attack of the paper: uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(d, generator=generator)
    honest = (common + torch.randn(n - f, d, generator=generator)) / math.sqrt(d)
    return torch.cat([honest, torch.rand(f, d, generator=generator)])


def by_svd(rows: Tensor, iterations: int) -> Tensor:
    """The definition: leading left singular vectors of the weighted unit columns, in the type of `rows`."""
    n = len(rows)
    lengths = rows.norm(dim=1)
    unit = (rows / lengths[:, None]).T  # (d, n)
    weights = torch.ones(n, dtype=rows.dtype)
    basis = unit
    for _ in range(iterations):
        left, *_ = torch.linalg.svd(unit * weights.sqrt(), full_matrices=False)
        basis = left[:, : math.ceil((n + 1) / 2)]
        explained = (basis.T @ unit).square().sum(dim=0)
        weights = ((1 - explained).abs() + SLACK).rsqrt()
    update: Tensor = basis @ (basis.T @ unit.sum(dim=1)) * lengths.quantile(0.5) / n
    return update


def disagreement(found: Tensor, rows: Tensor, iterations: int) -> float:
    wanted = by_svd(rows.double(), iterations)
    return float((found.double() - wanted).norm() / wanted.norm())


def medians(contenders: dict[str, Callable[[], Tensor]], repeat: int) -> dict[str, float]:
    """Milliseconds of each, taken by turns, so that a slow moment of the machine falls on all."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def table(times: dict[str, float]) -> str:
    mean = times["rows.mean(0)"]
    svd = times["SVD, d x n"]
    head = f"{'':24}{'median ms':>12}{'x mean':>10}{'SVD / this':>12}"
    lines = [f"{name:24}{ms:12.2f}{ms / mean:10.2f}{svd / ms:12.1f}" for name, ms in times.items()]
    return "\n".join([head, *lines])


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = gradients(args.n, args.f, args.d, args.seed)
    flag = Aggregator(Flag(iterations=args.iterations), f=args.f)
    error = disagreement(flag(rows).vector, rows, args.iterations)
    print(f"n = {args.n}, d = {args.d}, {args.iterations} iteration(s), {args.threads} thread(s)")
    print(f"relative difference to the float64 SVD form: {error:.1e}")
    if not error < AGREEMENT:
        print(f"It should be below {AGREEMENT:.0e}: nothing is timed.", file=sys.stderr)
        return 1
    times = medians(
        {
            "rows.mean(0)": lambda: rows.mean(dim=0),
            "Aggregator(Flag())": lambda: flag(rows).vector,
            "SVD, d x n": lambda: by_svd(rows, args.iterations),
        },
        args.repeat,
    )
    print(table(times))
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        machine = {"torch": torch.__version__, "python": platform.python_version(), "cpu": _cpu()}
        numbers = {"settings": settings, "machine": machine, "error": error, "median_ms": times}
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0].partition(": ")[2] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
