"""The time that checkpoints take from rounds, their size, and how long it takes to go on from one.

    python benchmarks/checkpoints.py --json benchmarks/results/checkpoints-HARDWARE.json

Two servers in processes of their own, one with a checkpoint every few rounds and one without, by turns so
many rounds each; the vectors of all workers come over real connections, from this process. A round counts
from the first push until the parameters have moved, so what a checkpoint takes from the round after it is
in that one. Then another server reads the newest checkpoint and goes on, up to the first pull of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.bench.wire.ways.base import Job  # noqa: E402
from varangian.bench.wire.ways.ours import Workers  # noqa: E402
from varangian.bench.wire.ways.service import Service, layout  # noqa: E402
from varangian.config import RunConfig, loads  # noqa: E402
from varangian.config.build import learner  # noqa: E402
from varangian.config.settings import Checkpoints  # noqa: E402
from varangian.launch.checkpoints.folder import CheckpointFolder, Origin  # noqa: E402
from varangian.launch.checkpoints.keeper import CheckpointKeeper  # noqa: E402
from varangian.launch.output.run_folder import RunFolder  # noqa: E402
from varangian.protos.network.malloc import keep_large_blocks  # noqa: E402
from varangian.server.observability.record import RoundRecord  # noqa: E402
from varangian.server.rounds.checkpointing import Plain, ServerState  # noqa: E402
from varangian.state_file import unflatten  # noqa: E402

SERVE = "--serve"
NUMBERS, NAMES = ("n", "f", "d"), ("rule", "optimizer", "every")
"""Options that servers are started with, too."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=10, help="workers; by default 10")
    parser.add_argument("-f", type=int, default=3)
    parser.add_argument("-d", type=int, default=11_200_000, help="parameters; by default 11200000")
    parser.add_argument("--rule", default="multi_krum")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--every", type=int, default=10, help="rounds from one checkpoint to the next")
    parser.add_argument("--turns", type=int, default=5, help="so many rounds for each server by turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    parser.add_argument(SERVE, choices=["with", "without", "again"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    keep_large_blocks()
    if args.serve:
        serve(args)
        return
    where = machine()
    with tempfile.TemporaryDirectory(prefix="varangian-checkpoints-") as folder:
        args.output = Path(folder)
        found = measured(args)
    text = json.dumps({"machine": where | {"load_at_end": load()}, **found}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(f"{text}\n")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    job = Job(args.n, args.d)
    rounds: dict[str, list[float]] = {"with": [], "without": []}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(serving(args, kind)) for kind in rounds}
        workers = {kind: Workers(server.address, job) for kind, server in servers.items()}
        for found in workers.values():
            stack.callback(found.close)
        for turn in range(args.turns + 1):
            for kind, server in servers.items():
                seconds = [server.round(workers[kind]) for _ in range(args.every)]
                rounds[kind] += seconds if turn else []  # the first turn is to warm up
                print(kind, *(f"{1e3 * value:.0f}" for value in seconds), "ms", file=sys.stderr)
        kept = servers["with"].ask("kept")
    medians = {kind: statistics.median(found) for kind, found in rounds.items()}
    return {
        "settings": {name: getattr(args, name) for name in (*NUMBERS, *NAMES)},
        "rounds": rounds,
        "median": medians,
        "ratio": medians["with"] / medians["without"],
        "worst": {kind: max(found) for kind, found in rounds.items()},
        **kept,
        "again": again(args, job),
    }


def again(args: argparse.Namespace, job: Job) -> dict[str, float]:
    """Go on from the newest checkpoint in a new process."""
    began = time.perf_counter()
    with serving(args, "again") as server:
        workers = Workers(server.address, job, "pull")
        served = time.perf_counter()
        workers.round()
        ended = time.perf_counter()
        found = server.ask("went_on")
        workers.close()
    return {**found, "first_pull_s": ended - served, "all_s": ended - began}


class Child:
    """A server in a process of its own, which answers a line for each line."""

    def __init__(self, args: argparse.Namespace, kind: str) -> None:
        command = [sys.executable, __file__, SERVE, kind, "--output", str(args.output)]
        command += [word for name in NUMBERS for word in (f"-{name}", str(getattr(args, name)))]
        command += [word for name in NAMES for word in (f"--{name}", str(getattr(args, name)))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address: str = self._answer()["address"]

    def ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def round(self, workers: Workers) -> float:
        """Seconds from the first push until the parameters have moved."""
        self.ask("ready")
        began = time.perf_counter()
        workers.round()
        done: float = self.ask("done")["at"]
        return done - began

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def serving(args: argparse.Namespace, kind: str) -> Iterator[Child]:
    child = Child(args, kind)
    try:
        yield child
    finally:
        child.close()


# In the process of a server


class Timed:
    """A keeper that writes the record too, as a run does, and takes the time of each checkpoint."""

    def __init__(self, config: RunConfig, args: argparse.Namespace) -> None:
        self.folder = RunFolder.create(config, path=args.output / "run")
        origin = Origin.of(config, "run", 0, layout(args.d))
        self._keeper = CheckpointKeeper(
            self.folder, Checkpoints(), args.every, config.rounds, origin, _note
        )
        self.copied: list[float] = []
        """Seconds for which a round waits, when another one is due."""
        self.written: list[float] = []
        """Seconds from there until the checkpoint is complete on the disk."""

    def due(self, following: int, record: RoundRecord) -> bool:
        self.folder.observe(record)
        return self._keeper.due(following, record)

    def keep(self, state: ServerState, more: Plain) -> None:
        began = time.perf_counter()
        self._keeper.keep(state, more)
        self.copied.append(time.perf_counter() - began)
        threading.Thread(target=self._until_written, args=(state.round, time.perf_counter())).start()

    def _until_written(self, round: int, began: float) -> None:
        while self._keeper.newest != round and time.perf_counter() < began + 60:
            time.sleep(0.001)
        self.written.append(time.perf_counter() - began)

    def kept(self) -> dict[str, Any]:
        self._keeper.wait()
        checkpoints = CheckpointFolder(self.folder.path)
        return {
            "bytes": checkpoints.file(checkpoints.rounds()[0]).stat().st_size,
            "copy_s": {"median": statistics.median(self.copied), "most": max(self.copied)},
            "write_s": {"median": statistics.median(self.written), "most": max(self.written)},
        }

    def close(self) -> None:
        self._keeper.wait()
        self.folder.close()


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def serve(args: argparse.Namespace) -> None:
    """Answer commands from the standard input."""
    config = loads(
        {
            "workers": args.n,
            "f": args.f,
            "aggregator": args.rule,
            "rounds": 1_000_000,
            "optimizer": {"name": args.optimizer, "lr": 0.001},
            "output": str(args.output),
        }
    )
    built = learner(config, torch.zeros(args.d))
    keeper = Timed(config, args) if args.serve == "with" else None
    went_on: dict[str, float] = {}
    state = None
    if args.serve == "again":
        began = time.perf_counter()
        checkpoints = CheckpointFolder(args.output / "run")
        found = checkpoints.read(checkpoints.rounds()[0])
        state = unflatten(found.plain["state"], found.tensors)
        went_on["read_s"] = time.perf_counter() - began
    began = time.perf_counter()
    service = Service(args.n, built, args.f, keeper=keeper, state=state)
    went_on["restore_s"] = time.perf_counter() - began
    round = 0
    if state is None:
        service.push_by_hand(torch.linspace(1, 2, args.d).numpy().data.cast("B"))
    answer(address=service.address)
    for line in sys.stdin:
        match line.strip():
            case "ready":
                round += 1
                service.until(round)
                answer()
            case "done":
                answer(at=service.committed(round))
            case "kept":
                assert keeper is not None
                answer(**keeper.kept())
            case "went_on":
                answer(**went_on)
            case _:
                raise ValueError(line)
    service.close()
    if keeper is not None:
        keeper.close()


def answer(**found: Any) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
