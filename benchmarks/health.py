"""Latency of health checks while a gigabyte of vectors arrives and is aggregated.

    python benchmarks/health.py --json benchmarks/results/health-HARDWARE.json

Rounds of 15 workers with 1 GB in all, at 600 MB/s and as fast as they go, beside gRPC and as chunks,
aggregated while they arrive. Who asks is a process of its own, on a connection of its own, and asks again
5 ms after each answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from benchmarks.soak import names, vectors  # noqa: E402
from tests.hostile.http2 import Line  # noqa: E402
from tests.hostile.siege import Honest, Siege, Target  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.bench.wire.ways.rounds import PacedClient, RateLimit  # noqa: E402
from varangian.protos.network.malloc import keep_large_blocks  # noqa: E402

PAUSE = 0.005
WARM_UP = 2
Way: TypeAlias = Literal["lane", "chunks"]


class Chunked(PacedClient):
    """A worker that never hears of the lane."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connection.data_channel.set_port = lambda port: None  # type: ignore[method-assign]


KINDS: dict[Way, type[PacedClient]] = {"lane": PacedClient, "chunks": Chunked}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=15, help="workers; by default 15")
    parser.add_argument("-d", type=int, default=16_700_000, help="parameters; by default 16700000")
    parser.add_argument("--rules", nargs="+", default=["multi_krum", "median", "flag"])
    parser.add_argument("--rounds", type=int, default=5, help="of each rule at each pace")
    parser.add_argument(
        "--paces", nargs="+", type=float, default=[600, 0], help="MB/s in all; 0 is no limit"
    )
    parser.add_argument("--ways", nargs="+", choices=KINDS, default=[*KINDS], help="by default both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--ask", metavar="ADDRESS", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.ask:
        ask(Target(args.ask, args.d))
        return
    torch.set_num_threads(1)
    keep_large_blocks()
    where = machine()
    found = [line for rule in args.rules for way in args.ways for line in of_rule(args, rule, way)]
    result = {"machine": where | {"load_at_end": load()}, "n": args.n, "d": args.d, "found": found}
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(f"{json.dumps(result, indent=2)}\n")


def of_rule(args: argparse.Namespace, rule: str, way: Way) -> list[dict[str, Any]]:
    """One line for each pace."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        options = {"workers": args.n, "quorum": args.n, "rule": rule, "f": 3, "deadline": 600}
        siege = Siege(Path(folder) / "server.log", args.d, idle=10, patience=5, **options)
        stack.enter_context(closing(siege))
        bucket = RateLimit()
        honest = Honest(siege, names(args.n), vectors(args.n, args.d), kind=partial(KINDS[way], bucket))
        stack.enter_context(closing(honest))
        for _ in range(WARM_UP):
            honest.round()
        return [
            {"rule": rule, "way": way} | measured(siege, honest, bucket, pace, args.rounds)
            for pace in args.paces
        ]


def measured(siege: Siege, honest: Honest, bucket: RateLimit, pace: float, rounds: int) -> dict[str, Any]:
    bucket.rate = pace * 1e6 or None
    pushes = list[tuple[float, float]]()
    with closing(Asker(siege)) as asker:
        for _ in range(rounds):
            _, pushed = honest.round()
            end = time.perf_counter()
            pushes.append((end - pushed, end))
        asked = asker.finished()
    during = [took for at, took in asked if any(start <= at <= end for start, end in pushes)]
    line = {
        "pace_mb_s": pace,
        "push_s": [end - start for start, end in pushes],
        "vectors_arrive": quantiles(during),
        "whole_rounds": quantiles([took for _, took in asked]),
    }
    print(json.dumps(line), file=sys.stderr)
    return line


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(1e3 * value for value in seconds)
    last = len(ordered) - 1
    places = {"median": 0.5, "p99": 0.99, "most": 1.0}
    return {"asked": len(ordered), **{name: ordered[round(place * last)] for name, place in places.items()}}


class Asker:
    """Another process, which asks until it is told to stop."""

    def __init__(self, target: Target) -> None:
        command = [sys.executable, __file__, "--ask", target.address, "-d", str(target.numel)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def finished(self) -> list[tuple[float, float]]:
        """When it asked, by a clock that all processes share, and how long it waited."""
        text, _ = self._process.communicate("stop\n", 30)
        found: list[tuple[float, float]] = json.loads(text)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def ask(target: Target) -> None:
    """The other process."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    found = list[tuple[float, float]]()
    with Line(target) as line:
        print("ready", flush=True)
        while not over.wait(PAUSE):
            start = time.perf_counter()
            stream = line.call("Status")
            line.message(stream, b"", end=True)
            assert line.answer(stream).get("grpc-status") == "0"
            found.append((start, time.perf_counter() - start))
            line.events.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
