"""`varangian bench round --small`: CPU of a round of a small model beside a bare pair of grpc.aio calls.

Both move the same bytes between the same number of workers and one server, in processes of their own,
interleaved in one run. A round has the service, the coordinator, the rule, the step and the record of a
run; the gradient alone is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from varangian.bench.machine import load, machine
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.processes import BrokenWay, Pair, Round
from varangian.bench.wire.ways.small import ROUNDS
from varangian.cli.main import OK, CommandError
from varangian.files import write_atomically

SCHEMA = 1
PARAMETERS = 5000
"""Of a small model, where no other number is asked for."""
WARM_UP = 1
WAYS = {"TCP": ("small:Real", "small:Bare"), "TLS": ("small:RealTls", "small:BareTls")}
LEGEND = (
    "CPU ms: of one worker and round. Bare: a unary grpc.aio call in each direction that moves the same\n"
    "bytes. x: CPU of server and workers together as a ratio to bare in the same turn. Medians."
)


@dataclass(frozen=True)
class Cost:
    """Medians over the turns of one way."""

    server: float
    """Milliseconds of CPU for each worker and round."""
    worker: float
    rounds: float
    """In a second, as long as both are at work."""


@dataclass(frozen=True)
class Timing:
    """A round of a run beside a bare pair of calls."""

    line: str
    round: Cost
    bare: Cost
    ratio: float
    ratios: tuple[float, ...]
    """Of each turn."""


def measure(args: argparse.Namespace) -> int:
    """Measure and print."""
    where, size = machine(), args.parameters or PARAMETERS
    job = Job(args.workers, size)
    try:
        timings = [_timing(line, *ways, job, args.repeats) for line, ways in WAYS.items()]
    except BrokenWay as error:
        raise CommandError(str(error)) from None
    settings = {"workers": args.workers, "parameters": size, "rounds": ROUNDS, "repeats": args.repeats}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": where | {"load_at_end": load()},
        "settings": settings,
        "timings": [asdict(timing) for timing in timings],
    }
    text = json.dumps(report, indent=2, allow_nan=False)
    print(text if args.format == "json" else plain(timings, report))
    if args.json:
        write_atomically(Path(args.json), f"{text}\n".encode())
    return OK


def _timing(line: str, real: str, bare: str, job: Job, repeats: int) -> Timing:
    print(f"{line}, {job.workers} x {job.numel} ...", file=sys.stderr)
    with ExitStack() as stack:
        pairs = [Pair(where, job) for where in (real, bare)]
        for pair in pairs:
            stack.callback(pair.close)
        for step in (Pair.connect, Pair.begin):
            for pair in pairs:
                step(pair)
        turns = [[pair.round() for pair in pairs] for _ in range(WARM_UP + repeats)][WARM_UP:]
    ratios = tuple(ours.cpu / theirs.cpu for ours, theirs in turns)
    real_turns, bare_turns = zip(*turns, strict=True)
    return Timing(line, _cost(real_turns, job), _cost(bare_turns, job), statistics.median(ratios), ratios)


def _cost(turns: Sequence[Round], job: Job) -> Cost:
    share = 1e3 / (ROUNDS * job.workers)
    return Cost(
        statistics.median(turn.server.cpu for turn in turns) * share,
        statistics.median(turn.workers.cpu for turn in turns) * share,
        ROUNDS / statistics.median(turn.seconds for turn in turns),
    )


def plain(timings: Sequence[Timing], report: dict[str, Any]) -> str:
    """The report as a table."""
    settings, where = report["settings"], report["machine"]
    rows = [
        (f"{settings['workers']} x {settings['parameters']}", "server", "worker", "both", "rounds/s", "x")
    ]
    for timing in timings:
        for name, cost, ratio in (
            ("round", timing.round, f"{timing.ratio:.2f}"),
            ("bare", timing.bare, "1"),
        ):
            both = cost.server + cost.worker
            cells = (f"{cost.server:.3f}", f"{cost.worker:.3f}", f"{both:.3f}", f"{cost.rounds:.1f}")
            rows.append((f"{timing.line}, {name}", *cells, ratio))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "   ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
    loads = f"load average {where['load_at_start']} before and {where['load_at_end']} after"
    return "\n".join([*lines, "", LEGEND, f"loopback; {where['cpu']}, cores: {where['cores']}; {loads}"])
