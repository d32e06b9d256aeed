"""A sweep of 100 runs through Slurm: how busy its cores are, and what is left of it when it is killed.

    python benchmarks/slurm_sweep.py --json benchmarks/results/slurm_sweep-HARDWARE.json

`varangian sweep --slurm` is killed when a part of its runs is done, two tasks are cancelled in Slurm, and
it is typed again. Its cores are looked at twice a second: a core is busy while Slurm has a task on it. Then
the same sweep is done without Slurm, and the tables are compared. The cluster is that of SLURM_CONF, or one
that `.ci/slurm` starts, with as many cores as this machine has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from varangian.bench.machine import load, machine  # noqa: E402

GRID = {
    "base": {
        "data": "synthetic",
        "model": "softmax",
        "workers": 15,
        "f": 3,
        "byzantine": {"count": 3, "knows": "all"},
    },
    "grid": {
        "aggregator": ["mean", "median", "krum", "trimmed_mean", "nnm+trimmed_mean"],
        "byzantine.attack": [None, "sign_flip", "alie", "ipm"],
    },
}
EACH = 0.5
"""Seconds between two looks at the cores."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="of 20 points each; by default 5")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--per-task", type=int, default=5, help="runs of a task; by default 5")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Sweep:
    """`varangian sweep` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "varangian", "sweep", "grid.yaml", "--format", "plain", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )

    @property
    def done(self) -> int:
        return sum(1 for _ in (self.folder / "runs").glob("*/result.json"))

    def end(self) -> list[str]:
        """The lines that it has printed."""
        lines = self.process.communicate()[0].splitlines()
        assert self.process.returncode == 0, lines
        return lines


def table(lines: list[str]) -> list[str]:
    return lines[next(at for at, line in enumerate(lines) if line.startswith("accuracy")) :]


def digests_of(folder: Path) -> dict[str, str]:
    files = folder.glob("runs/*/result.json")
    return {file.parent.name: json.loads(file.read_text())["digest"] for file in files}


def cores() -> int:
    return int(said("sinfo", "--noheader", "--format=%c").splitlines()[0])


def measure(asked: argparse.Namespace, home: Path) -> dict[str, Any]:
    grid = GRID | {"seeds": asked.seeds}
    grid["base"] = grid["base"] | {"rounds": asked.rounds}
    runs = asked.seeds * 20
    here, there = home / "here", home / "slurm"
    for folder in (here, there):
        folder.mkdir()
        (folder / "grid.yaml").write_text(json.dumps(grid))
    options = ("--slurm", "--per-task", str(asked.per_task))
    sweep, killed, cancelled = Sweep(there, *options), False, False
    busy: list[int] = []
    began, first, last = time.monotonic(), 0.0, 0.0
    while sweep.process.poll() is None:
        running = len(said("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split())
        waiting = len(said("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i").split())
        if running:
            first, last = first or time.monotonic(), time.monotonic()
        if running and (waiting or running == cores()):  # not the end, with fewer tasks than cores
            busy.append(running)
        elif first and waiting:
            busy.append(0)
        if not cancelled and sweep.done >= runs // 5:
            (handle,) = there.glob("runs/.engines/*/handle")
            job = handle.read_text().strip()
            tasks = runs // asked.per_task
            subprocess.run(["scancel", f"{job}_{tasks - 1}", f"{job}_{tasks - 2}"], check=True)
            cancelled = True
            print(f"cancelled two tasks of {tasks}, with {sweep.done} of {runs} runs done", flush=True)
        if not killed and sweep.done >= runs * 2 // 5:
            sweep.process.send_signal(signal.SIGKILL)
            sweep.process.communicate()
            print(f"killed the sweep, with {sweep.done} of {runs} runs done", flush=True)
            sweep, killed = Sweep(there, *options), True
        time.sleep(EACH)
    code = sweep.process.returncode
    lines = sweep.process.stdout.read().splitlines() if sweep.process.stdout else []
    if code:  # the runs of the cancelled tasks
        print("\n".join(lines[-60:-20]))
        lines = Sweep(there, *options).end()
    seconds = [json.loads(file.read_text())["seconds"] for file in (there / "runs").glob("*/result.json")]
    print("without Slurm", flush=True)
    same = table(Sweep(here).end())[:-2] == table(lines)[:-2]
    digests = [digests_of(folder) for folder in (here, there)]
    print("\n".join(table(lines)))
    return {
        "runs": runs,
        "per_task": asked.per_task,
        "cores": cores(),
        "seconds_with_tasks": last - first,
        "seconds_until_all_done": last - began,
        "busy": sum(busy) / (len(busy) * cores()),
        "seconds_in_rounds": sum(seconds),
        "same_table": same,
        "same_digests": digests[0] == digests[1] and len(digests[0]) == runs,
    }


def main() -> None:
    asked = arguments()
    started = None
    if not said("sinfo", "--noheader"):
        started = said(str(ROOT / ".ci/slurm"), "up")
        os.environ["SLURM_CONF"] = started
    try:
        with tempfile.TemporaryDirectory() as home:
            found = measure(asked, Path(home))
    finally:
        if started is not None:
            subprocess.run([ROOT / ".ci/slurm", "down"], check=False)
    print(json.dumps(found, indent=1))
    if asked.json is not None:
        content = {"machine": machine(), "load": load(), "sweep": found}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
