"""A server over many rounds, under attack, and with a very large model; all in processes of their own.

    python benchmarks/soak.py --rounds 100 --json benchmarks/results/soak-HARDWARE.json
    python benchmarks/soak.py --hostile --json benchmarks/results/hostile-HARDWARE.json
    python benchmarks/soak.py --large --json benchmarks/results/large-HARDWARE.json

The first looks at memory, files and threads of the server every few rounds. The second compares rounds of
honest workers with and without 200 stalled streams, as many stalled lines beside gRPC, floods and bombs at
the same time, by turns; attackers are another process of the lowest priority, since on one machine they
would take the processor itself away.
The third moves a vector of 3 GB there and back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from tests.hostile import attacks, lane_attacks  # noqa: E402
from tests.hostile.http2 import HungUp, Line  # noqa: E402
from tests.hostile.siege import Honest, Siege, Target  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.bench.wire.ways.rounds import PacedClient, RateLimit  # noqa: E402
from varangian.protos.network.malloc import keep_large_blocks  # noqa: E402

Attack = Callable[[Target], None]
SPACING = 16
LARGE = 4 << 20
"""Bytes of a message of the very large model."""
FLOODS = (
    attacks.ping_flood,
    attacks.settings_flood,
    attacks.rapid_reset,
    attacks.continuation_flood,
    attacks.header_floods,
    attacks.join_flood,
    attacks.status_flood,
    attacks.pull_flood,
)
BOMBS = (
    attacks.compression_bombs,
    attacks.amplification,
    attacks.oversize,
    attacks.table_bomb,
    attacks.random_bytes,
)
LANE = (
    lane_attacks.noise,
    lane_attacks.connection_flood,
    lane_attacks.shown_and_cancelled,
    lane_attacks.cut,
    lane_attacks.chunks_all_the_same,
    lane_attacks.wrong_digests,
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=15, help="honest workers; by default 15")
    parser.add_argument("-d", type=int, default=11_200_000, help="parameters; by default 11200000")
    parser.add_argument("--rule", default="multi_krum")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="rounds between two looks at the server")
    parser.add_argument("--hostile", action="store_true", help="rounds in peace and under attack")
    parser.add_argument("--phases", type=int, default=3, help="of each kind")
    parser.add_argument("--pace", type=float, default=600, help="MB/s of all honest workers; 0 is no limit")
    parser.add_argument("--large", action="store_true", help="one vector of 3 GB there and back")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--besiege", metavar="ADDRESS", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.besiege:
        besiege(Target(args.besiege, args.d))
        return
    torch.set_num_threads(1)
    keep_large_blocks()
    where = machine()
    run = hostile if args.hostile else large if args.large else soak
    with tempfile.TemporaryDirectory() as folder:
        found = run(args, Path(folder) / "server.log")
    text = json.dumps({"machine": where | {"load_at_end": load()}, **found}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(f"{text}\n")


def look(siege: Siege, round: int) -> dict[str, float]:
    found = {
        "round": round,
        "resident_mb": siege.resident / 1e6,
        "peak_mb": siege.peak / 1e6,
        "files": siege.files,
        "threads": siege.threads,
    }
    print(json.dumps(found), file=sys.stderr)
    return found


def vectors(n: int, d: int) -> list[torch.Tensor]:
    """Different for each worker, in the memory of one."""
    long = 0.5 + torch.rand(d + SPACING * n)
    return [long[SPACING * i : SPACING * i + d] for i in range(n)]


def names(n: int) -> tuple[str, ...]:
    return tuple(f"w{i:02d}" for i in range(n))


def soak(args: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Rounds as fast as they go."""
    with ExitStack() as stack:
        options = {"workers": args.n, "quorum": args.n, "rule": args.rule, "f": 3, "deadline": 600}
        siege = stack.enter_context(closing(Siege(log, args.d, idle=10, patience=5, **options)))
        honest = stack.enter_context(closing(Honest(siege, names(args.n), vectors(args.n, args.d))))
        looks, seconds = list[dict[str, float]](), list[float]()
        for round in range(args.rounds + 1):
            if round % args.every == 0:
                looks.append(look(siege, round))
            if round < args.rounds:
                seconds.append(sum(honest.round()))
        text = log.read_text()
    assert "Traceback" not in text, text[-3000:]
    bound = siege.bound / 1e6
    return {
        "n": args.n,
        "d": args.d,
        "rule": args.rule,
        "bound_mb": bound,
        "within_bound": looks[-1]["peak_mb"] <= bound,
        "looks": looks,
        "seconds": seconds,
    }


def hostile(args: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Rounds by turns in peace and under attack."""
    rounds: dict[str, list[float]] = {"peace": [], "siege": []}
    asked: dict[str, list[float]] = {"peace": [], "siege": []}
    with ExitStack() as stack:
        # The last worker is the traitor: rounds close when all others have pushed.
        options = {"workers": args.n + 1, "quorum": args.n, "rule": args.rule, "f": 3, "deadline": 0.01}
        siege = stack.enter_context(closing(Siege(log, args.d, idle=10, patience=5, **options)))
        bucket = RateLimit()
        bucket.rate = args.pace * 1e6 or None
        paced = partial(PacedClient, bucket)
        honest = Honest(siege, names(args.n), vectors(args.n, args.d), kind=paced)
        stack.enter_context(closing(honest))
        attackers = stack.enter_context(closing(Attackers(siege, f"w{args.n:02d}")))
        for _ in range(2):
            honest.round()
        before = look(siege, 2)
        siege.forget_peak()
        for _ in range(args.phases):
            for kind in ("peace", "siege"):
                with Health(siege) as health:
                    if kind == "siege":
                        attackers.attack()
                    rounds[kind] += [sum(honest.round()) for _ in range(4)]
                    if kind == "siege":
                        attackers.stop()
                asked[kind] += health.seconds
        after = look(siege, honest.served)
        text = log.read_text()
    assert "Traceback" not in text, text[-3000:]
    medians = {kind: statistics.median(found) for kind, found in rounds.items()}
    return {
        "n": args.n,
        "d": args.d,
        "rule": args.rule,
        "pace_mb_s": args.pace,
        "rounds": rounds,
        "medians": medians,
        "ratio": medians["siege"] / medians["peace"],
        "attacks": attackers.counts,
        "attackers_cpu_share": attackers.cpu_share,
        "health_ms": {kind: _quantiles(found) for kind, found in asked.items()},
        "before": before,
        "after": after,
        "bound_mb": siege.bound / 1e6,
        "within_bound": after["peak_mb"] <= siege.bound / 1e6,
        "growth_of_peak_mb": after["peak_mb"] - before["resident_mb"],
    }


def large(args: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Mostly zeros, so that the memory is that of the server alone."""
    d = 750_000_000
    vector = torch.zeros(d)
    vector[:: d // 1000] = 1.0
    with ExitStack() as stack:
        siege = Siege(log, d, workers=1, quorum=1, deadline=3600, idle=10, patience=5)
        stack.enter_context(closing(siege))
        before = look(siege, 0)
        honest = stack.enter_context(closing(Honest(siege, ("w00",), [vector], idle=120.0)))
        client = honest.clients[0]
        client._pace.set_limit(LARGE)
        client._incoming.chunk_bytes = LARGE
        pull, push = honest.round()
        # What comes back is what was sent, times the learning rate, and the other way round.
        client._incoming.chunk_bytes = LARGE
        parameters = honest.runner.run(client.pull(honest.served)).parameters
        assert torch.equal(parameters[:: d // 1000], torch.full((len(parameters[:: d // 1000]),), -0.1))
        assert int(parameters.count_nonzero()) == int(vector.count_nonzero())
        after = look(siege, 1)
    found = {"bytes": 4 * d, "message_bytes": LARGE, "pull_s": pull, "push_s": push}
    return found | {"before": before, "after": after, "bound_mb": siege.bound / 1e6}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1e3 * value for value in seconds) or [0.0]
    return {
        "median": statistics.median(ordered),
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "most": ordered[-1],
    }


class Health:
    """Asks how the run is going ten times a second, on one connection, and how long that takes."""

    def __init__(self, target: Target) -> None:
        self.seconds: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(target,))

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self, target: Target) -> None:
        with Line(target) as line:
            while not self._over.wait(0.1):
                start = time.perf_counter()
                stream = line.call("Status")
                line.message(stream, b"", end=True)
                assert line.answer(stream).get("grpc-status") == "0"
                self.seconds.append(time.perf_counter() - start)
                line.events.clear()


class Attackers:
    """Another process, which attacks and stops on command."""

    def __init__(self, target: Target, traitor: str) -> None:
        command = [sys.executable, __file__, "--besiege", target.address, "-d", str(target.numel)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"VARANGIAN_TRAITOR": traitor},
        )
        self.counts: dict[str, int] = {}
        self._cpu = self._seconds = 0.0
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def _tell(self, word: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._answer()

    def attack(self) -> None:
        self._tell("attack")
        self._began = time.perf_counter()

    def stop(self) -> None:
        found = self._tell("stop")
        self.counts, self._cpu = found["counts"], found["cpu"]
        self._seconds += time.perf_counter() - self._began

    @property
    def cpu_share(self) -> float:
        """Of one core, while they attacked."""
        return self._cpu / self._seconds if self._seconds else 0.0

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def besiege(target: Target) -> None:
    """The process of the attackers."""
    os.nice(19)
    attacks.TRAITOR, lane_attacks.OTHERS = os.environ["VARANGIAN_TRAITOR"], ()
    counts: dict[str, int] = {}
    over, threads = threading.Event(), list[threading.Thread]()
    print(json.dumps({}), flush=True)
    began = time.process_time()
    for line in sys.stdin:
        if line.strip() == "attack":
            over.clear()
            kinds: list[Callable[[], None]] = [
                partial(stalling, target, over, counts),
                partial(repeating, FLOODS, target, over, counts),
                partial(repeating, BOMBS, target, over, counts),
                partial(repeating, LANE, target, over, counts),
            ]
            threads = [threading.Thread(target=kind) for kind in kinds]
            for thread in threads:
                thread.start()
            print(json.dumps({}), flush=True)
        else:
            over.set()
            for thread in threads:
                thread.join()
            cpu = time.process_time() - began
            print(json.dumps({"counts": counts, "cpu": cpu}), flush=True)


def stalling(target: Target, over: threading.Event, counts: dict[str, int]) -> None:
    """200 streams and as many lines at a byte now and then, and pulls that nobody reads."""
    while not over.is_set():
        kinds: list[Iterator[None]] = [
            attacks.slow_loris(target),
            attacks.never_reading(target),
            lane_attacks.slow_loris(target),
        ]
        with suppress(HungUp, OSError, AssertionError):
            for _ in range(25):
                for kind in kinds:
                    next(kind, None)
                if over.wait(0.2):
                    break
        counts["stalling"] = counts.get("stalling", 0) + 1
        for kind in kinds:
            kind.close()  # type: ignore[attr-defined]


def repeating(
    kinds: tuple[Callable[[Target], None], ...],
    target: Target,
    over: threading.Event,
    counts: dict[str, int],
) -> None:
    """One attack after the other; what stops an attacker short is no failure of the server."""
    while not over.is_set():
        for kind in kinds:
            if over.is_set():
                break
            with suppress(HungUp, OSError, AssertionError):
                kind(target)
            counts[kind.__name__] = counts.get(kind.__name__, 0) + 1


if __name__ == "__main__":
    main()
