"""Accuracy of rules under attacks: a grid of whole runs, as one table and one JSON file.

    python benchmarks/attacks.py --set worker.momentum=0 --seeds 1 2 --json results.json

Every cell is `varangian run` with the settings of its row and column; nothing here trains by itself. The
backend `simulate` gives the digests that real processes give, in a fraction of the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from varangian.cli.views.accuracy_plot import curves
from varangian.config import load
from varangian.launch import run
from varangian.server.observability.record import RoundRecord

RULES = ["mean", "unit_mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "flag"]
ATTACKS = ["none", "uniform", "sign_flip"]


def settings(rule: str, attack: str, args: argparse.Namespace) -> list[str]:
    attacked = [] if attack == "none" else [f"byzantine.attack={attack}", f"byzantine.count={args.count}"]
    return [f"aggregator={rule}", *attacked, f"backend={args.backend}", *args.set]


def cell(rule: str, attack: str, args: argparse.Namespace) -> dict[str, Any]:
    accuracies, digests = [], []
    seen: list[list[tuple[int, float]]] = []

    def observe(record: RoundRecord) -> None:
        if record.accuracy is not None:
            seen[-1].append((record.round + 1, record.accuracy))

    for seed in args.seeds:
        seen.append([])
        with tempfile.TemporaryDirectory() as output:
            overrides = [*settings(rule, attack, args), f"seed={seed}", f"output={output}"]
            result = run(load(None, overrides), observe=observe, note=lambda text: None)
        if result.accuracy is not None and (not seen[-1] or seen[-1][-1][0] < result.rounds):
            seen[-1].append((result.rounds, result.accuracy))  # a run may end early
        accuracies.append(result.accuracy)
        digests.append(result.digest)
    return {
        "rule": rule,
        "attack": attack,
        "settings": settings(rule, attack, args),
        "accuracy": statistics.mean(accuracies),
        "accuracies": accuracies,
        "digests": digests,
        "curves": seen,
    }


def table(cells: list[dict[str, Any]], rules: list[str], attacks: list[str]) -> str:
    found = {(c["rule"], c["attack"]): c["accuracy"] for c in cells}
    lines = ["| rule | " + " | ".join(attacks) + " |", "|---|" + "---|" * len(attacks)]
    for rule in rules:
        shares = [f"{100 * found[rule, attack]:.1f}" for attack in attacks]
        lines.append(f"| {rule} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="+", default=RULES, help="as `aggregator=` takes them")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, help="as `byzantine.attack=` takes them")
    parser.add_argument("--count", type=int, default=3, help="Byzantine workers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the mean over these")
    parser.add_argument("--backend", default="simulate", choices=["simulate", "processes"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--png", type=Path, help="where to draw the curves of the first seed")
    parser.add_argument("--json", type=Path, help="where to write every run")
    args = parser.parse_args()
    cells = []
    for rule in args.rules:
        for attack in args.attacks:
            cells.append(cell(rule, attack, args))
            print(f"{rule} {attack} {100 * cells[-1]['accuracy']:.1f} %", flush=True)
    print(f"\naccuracy in %, {args.backend}, {' '.join(args.set)}, seeds {args.seeds}\n")
    print(table(cells, args.rules, args.attacks))
    if args.png:
        drawn = {a: {c["rule"]: c["curves"][0] for c in cells if c["attack"] == a} for a in args.attacks}
        curves(drawn, args.png)
    if args.json:
        args.json.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
