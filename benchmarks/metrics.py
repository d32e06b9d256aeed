"""The cost of a metrics port: processor time and length of rounds with and without it.

    python benchmarks/metrics.py --json benchmarks/results/metrics-HARDWARE.json

Two times `varangian run` with real processes at the same time, so that what else the machine does is the
same for both: one with a metrics port, of which the state of the page is fetched every second from here and
`/metrics` every five, and one without. The model is small, so that rounds are short and the share of what a
round costs beside the model is large. Processor time is that of the server's process alone, between two
rounds; the first rounds are to warm up. The ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.protos.network.listen import bind_sockets  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=10, help="workers; by default 10")
    parser.add_argument("-f", type=int, default=3)
    parser.add_argument("--rule", default="default")
    parser.add_argument("--rounds", type=int, default=300, help="measured rounds of a run; by default 300")
    parser.add_argument("--warm", type=int, default=30, help="rounds before them; by default 30")
    parser.add_argument("--turns", type=int, default=5, help="pairs of runs; by default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    where = machine()
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    with ThreadPoolExecutor(2) as pool:
        for turn in range(args.turns):
            kinds = sorted(found, reverse=bool(turn % 2))  # who is started first
            runs = [pool.submit(one_run, args, kind == "with") for kind in kinds]
            for kind, run in zip(kinds, runs, strict=True):
                found[kind].append(run.result())
                print(kind, found[kind][-1], file=sys.stderr)
    medians = {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in found.items()
    }
    pairs = [*zip(found["with"], found["without"], strict=True)]
    ratios = {
        name: statistics.median(one[name] / other[name] for one, other in pairs)
        for name in ("cpu_ms", "wall_ms")
    }
    text = json.dumps(
        {
            "machine": where | {"load_at_end": load()},
            "settings": {name: getattr(args, name) for name in ("n", "f", "rule", "rounds", "turns")},
            "runs": found,
            "median": medians,
            "ratio": ratios,
        },
        indent=2,
    )
    print(text)
    if args.json:
        args.json.write_text(f"{text}\n")


def one_run(args: argparse.Namespace, monitored: bool) -> dict[str, float]:
    """Milliseconds of a round of one run: of the server's processor, and on the clock."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="varangian-metrics-") as folder:
        command = [
            *(sys.executable, "-m", "varangian", "run", "--format", "json", f"output={folder}"),
            *(f"workers={args.n}", f"f={args.f}", f"aggregator={args.rule}", "evaluate.every=1000000"),
            f"rounds={args.warm + args.rounds + 10}",
            *([f"server.metrics_port={port}"] if monitored else []),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        polling = Polling(port) if monitored else None
        try:
            return measured(args, process, polling)
        finally:
            if polling is not None:
                polling.close()
            process.send_signal(signal.SIGTERM)
            process.communicate()


def measured(
    args: argparse.Namespace, process: subprocess.Popen[str], polling: Polling | None
) -> dict[str, float]:
    assert process.stdout
    began = (0.0, 0.0)
    polled = 0
    for line in process.stdout:
        round = json.loads(line).get("round")
        if round == args.warm:
            began = time.perf_counter(), processor_time(process.pid)
            polled = polling.answers if polling else 0
        if round == args.warm + args.rounds:
            wall, cpu = time.perf_counter() - began[0], processor_time(process.pid) - began[1]
            found = {"cpu_ms": 1e3 * cpu / args.rounds, "wall_ms": 1e3 * wall / args.rounds}
            return found | {"polls_per_s": (polling.answers - polled) / wall if polling else 0.0}
    raise RuntimeError(f"the run ended with {process.wait()}")


def processor_time(pid: int) -> float:
    """Seconds of processor time of the threads of a process, without its children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


class Polling:
    """Asks as one browser does that shows the page, every second, and as Prometheus does, every five.

    Both keep their connections.
    """

    def __init__(self, port: int) -> None:
        self.answers = 0
        self._connection = HTTPConnection("127.0.0.1", port, timeout=5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def _poll(self) -> None:
        second, tag = 0, ""
        while not self._stop.wait(1.0):
            second += 1
            try:
                tag = self._ask("/state.json", {"If-None-Match": tag}) or tag
                if second % 5 == 0:
                    self._ask("/metrics", {})
            except (HTTPException, OSError):
                self._connection.close()  # it does not listen yet, or not any more

    def _ask(self, path: str, headers: dict[str, str]) -> str:
        self._connection.request("GET", path, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        self.answers += answer.status in (200, 304)
        return answer.getheader("ETag", "")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()


def free_port() -> int:
    (found,) = bind_sockets("127.0.0.1", 0, "port")
    with found:
        port: Any = found.getsockname()[1]
    return int(port)


if __name__ == "__main__":
    main()
