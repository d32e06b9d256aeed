"""The verbs of every backend on the present device, beside what torch has for the same purpose.

    python benchmarks/bench_kernels.py --n 15 32 64 --d 10000000 --json benchmarks/results

Times are medians of single calls, taken by turns; bandwidths are the bytes of the rows, which each verb
reads once and a copy reads and writes, over that time. What does not agree with `reference` in float64 is
not timed. Run on a CPU it is a check that it runs: the figures of the GPU kernels are still owed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varangian.aggregators import Rows
from varangian.aggregators.kernels import BACKENDS, Backend, reference
from varangian.aggregators.numeric.order import Majority, Nearest, Window
from varangian.aggregators.numeric.weighted_order import WeightedMedian, WeightedWindow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GATED = 1 << 16
"""Columns on which a verb is compared with the definition."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time the kernels of every backend, beside torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, nargs="+", default=[15], help="rows")
    parser.add_argument("--d", type=int, nargs="+", default=[200_000], help="columns")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=7, help="turns; medians are reported")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the numbers here, too")
    return parser


def verbs(n: int, rows: Rows, r: Tensor) -> dict[str, Callable[[Backend], Tensor]]:
    weights = torch.full((1, n + 1), 1 / n, dtype=torch.float64)
    lo, hi = (n - 1) // 2, n // 2 + 1
    cut = (n - 1) // 3
    shares = tuple(2 * (i + 1) / (n * (n + 1)) for i in range(n))  # the heaviest has n times the lightest
    trimmed, halved = WeightedWindow(shares, cut / n), WeightedMedian(shares, midpoint=True)
    return {
        "gram": lambda b: b.gram(rows, None),
        "gram about r": lambda b: b.gram(rows, r),
        "combine": lambda b: b.combine(weights, rows, r),
        "median": lambda b: b.columnwise(Window(lo, hi), None, rows, None),
        "trimmed mean": lambda b: b.columnwise(Window(cut, n - cut), None, rows, None),
        "median by weight": lambda b: b.columnwise(halved, None, rows, None),
        "trimmed mean by weight": lambda b: b.columnwise(trimmed, None, rows, None),
        "meamed": lambda b: b.columnwise(Nearest(n - cut, lo, hi), None, rows, None),
        "sign majority": lambda b: b.columnwise(Majority(1.0), None, rows, None),
    }


def peers(matrix: Tensor) -> dict[str, Callable[[], Tensor]]:
    target = torch.empty_like(matrix)
    return {
        "copy": lambda: target.copy_(matrix),
        "mean(0)": lambda: matrix.mean(dim=0),
        "G @ G.T": lambda: matrix @ matrix.T,
        "torch.cdist": lambda: torch.cdist(matrix.float(), matrix.float()),
        "torch.median": lambda: matrix.median(dim=0).values,
    }


def disagreement(verb: str, backend: Backend, matrix: Tensor, r: Tensor) -> float:
    """Largest difference to the definition over its largest entry, on the first columns."""
    part, about = matrix[:, :GATED], r[:GATED]
    run = verbs(len(matrix), Rows.of(part), about)[verb]
    found, wanted = run(backend).double(), run(reference).double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def medians(
    contenders: dict[str, Callable[[], Tensor]], repeat: int, wait: Callable[[], None]
) -> dict[str, float]:
    """Milliseconds of each, after one call that compiles and warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeat + 1):
        for name, run in contenders.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if turn:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def measured(n: int, d: int, args: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """One line for each verb of each backend, and whether all of them passed the gate."""
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    matrix = torch.randn(n, d, device=device).to(dtype)
    r = 0.1 * torch.randn(d, device=device)
    allowed = 4 * torch.finfo(dtype).eps + 4e-6
    rows = Rows.of(matrix)
    contenders, errors = {f"torch / {name}": run for name, run in peers(matrix).items()}, {}
    for backend in BACKENDS:
        if reason := backend.refuses(rows):
            print(f"{backend.NAME} is left out: {reason}.")
            continue
        for verb, run in verbs(n, rows, r).items():
            name = f"{backend.NAME} / {verb}"
            errors[name] = disagreement(verb, backend, matrix, r)
            if errors[name] <= allowed:
                contenders[name] = lambda run=run, backend=backend: run(backend)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = medians(contenders, args.repeat, wait)
    size, copied = matrix.numel() * matrix.element_size(), times["torch / copy"]
    lines: list[dict[str, Any]] = [
        {
            "name": name,
            "n": n,
            "d": d,
            "ms": ms,
            "GB/s": size * (2 if name.endswith("copy") else 1) / ms / 1e6,
            # A copy moves every byte twice.
            "of copy bandwidth": copied / ms * (1 if name.endswith("copy") else 0.5),
            "error": errors.get(name),
        }
        for name, ms in times.items()
    ]
    failed = [name for name in errors if name not in times]
    for name in failed:
        print(f"{name} differs by {errors[name]:.1e} from the definition: not timed.", file=sys.stderr)
    return lines, not failed


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0].partition(": ")[2] if names else platform.machine()


def table(lines: list[dict[str, Any]]) -> str:
    head = f"{'':36}{'n':>4}{'d':>12}{'ms':>10}{'GB/s':>9}{'of copy':>9}"
    rest = (
        f"{x['name']:36}{x['n']:4}{x['d']:12}{x['ms']:10.3f}{x['GB/s']:9.1f}{x['of copy bandwidth']:9.0%}"
        for x in lines
    )
    return "\n".join([head, *rest])


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    lines, sound = [], True
    for n in args.n:
        for d in args.d:
            more, passed = measured(n, d, args)
            lines, sound = lines + more, sound and passed
    name = hardware(torch.device(args.device))
    print(f"{name}, {args.dtype}, torch {torch.__version__}")
    print(table(lines))
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        machine = {"hardware": name, "torch": torch.__version__, "python": platform.python_version()}
        args.json.mkdir(parents=True, exist_ok=True)
        file = (
            args.json / f"kernels-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{args.dtype}.json"
        )
        file.write_text(
            json.dumps({"settings": settings, "machine": machine, "lines": lines}, indent=2) + "\n"
        )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
