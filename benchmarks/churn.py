"""A run whose workers and whose server are killed again and again, for minutes.

    python benchmarks/churn.py --minutes 20 --json benchmarks/results/churn-HARDWARE.json

Every few seconds one worker, by chance, is killed with SIGKILL, and once a minute the server; all are
started again at once by the same commands. Counts what a person would have had to do: programs that ended
by themselves. Looks at the accuracy, at proven faults, of which there should be none, and at the history of
the run: that rounds follow each other but where a server went on from a checkpoint, that no vector counts
twice, and that no round was closed below the quorum.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.supervised import Program, Supervised, started  # noqa: E402
from tests.history import Rules, check, of_record  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402

MANY = 10**6
"""Rounds: the run is stopped before."""
PATIENCE = 120.0
"""Seconds for the first round, and for the end."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--worker-every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--server-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("-n", type=int, default=8, help="workers; by default 8")
    parser.add_argument("-f", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="varangian-churn-") as made:
        found = churned(args, args.keep or Path(made))
    text = json.dumps({"machine": where | {"load_at_end": load()}, **found}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(f"{text}\n")
    sys.exit(1 if found["hands"] or found["faults"] or found["problems"] else 0)


def churned(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill and start again for so many minutes; what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"w{i:02d}" for i in range(args.n))
    settings = (
        *(f"workers={args.n}", f"f={args.f}", f"rounds={MANY}", f"seed={args.seed}"),
        *(f"server.seed={args.seed}", "server.checkpoint.every=20", "evaluate.every=20", *args.set),
    )
    chance = random.Random(args.seed)
    programs = Supervised(folder, settings, names)
    kills = dict.fromkeys(("server", *names), 0)
    hands = list[dict[str, Any]]()
    with started(programs):
        programs.until_lines(0, PATIENCE)
        begin = time.monotonic()
        due = {"worker": begin + args.worker_every, "server": begin + args.server_every}
        while (now := time.monotonic()) < begin + 60 * args.minutes:
            hands += [_helped(program, now - begin) for program in programs.programs if _has_ended(program)]
            kind = min(due, key=lambda name: due[name])
            if now < due[kind]:
                time.sleep(min(0.2, due[kind] - now))
                continue
            due[kind] += args.worker_every if kind == "worker" else args.server_every
            victim = programs.server if kind == "server" else programs.workers[chance.choice(names)]
            victim.kill()
            victim.start()
            kills[victim.name] += 1
        programs.server.signal(signal.SIGTERM)
        code = programs.server.wait(PATIENCE)
        lines = programs.lines()
    return {
        "settings": settings,
        "minutes": args.minutes,
        "kills": kills,
        "hands": hands,
        "exit_code": code,
        **_summary(lines),
        "problems": _problems(programs, Rules(args.n - args.f, args.f, honest=names)),
    }


def _has_ended(program: Program) -> bool:
    return program.code is not None


def _helped(program: Program, after: float) -> dict[str, Any]:
    """Start a program again that has ended by itself: this is what a person would have to do."""
    found = {"program": program.name, "after": after, "code": program.code, "said": program.tail(600)}
    program.start()
    return found


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Rounds, accuracy and faults of a record."""
    accuracies = [line["accuracy"] for line in lines if line["accuracy"] is not None]
    faults: dict[str, int] = {}
    for line in lines:
        for worker in line["dropped"]:
            faults[worker] = faults.get(worker, 0) + 1
    missing = [len(line["missing"]) for line in lines if line["skipped"] is None]
    return {
        "rounds": 1 + max((line["round"] for line in lines), default=-1),
        "rounds_done_again": len(lines) - len({line["round"] for line in lines}),
        "skipped": sum(line["skipped"] is not None for line in lines),
        "missing_in_a_round": sum(missing) / max(1, len(missing)),
        "accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "faults": faults,
    }


def _problems(programs: Supervised, rules: Rules) -> list[str]:
    run = programs.run
    return [] if run is None else check(of_record(run / "rounds.jsonl"), rules)[:20]


if __name__ == "__main__":
    main()
