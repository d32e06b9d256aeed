"""`varangian demo`: what an attack does to a mean, and does not do to a robust rule."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from varangian.cli.commands.run import exit_code, quoted
from varangian.cli.main import OK, CommandError
from varangian.cli.views.demo_table import DemoView, demo_view
from varangian.config import load
from varangian.launch import RunError, RunResult, run
from varangian.launch.output.files import make_folder, write_atomically
from varangian.paths import user_path
from varangian.server.observability.record import RoundRecord

RULES = ("mean", "median", "krum", "flag")
ATTACKS = ("none", "uniform", "sign_flip")
BYZANTINE = 3
ROUNDS = 80
EVERY = 5
"""Rounds between two points of a curve."""


@dataclass
class Case:
    """One rule against one attack."""

    rule: str
    attack: str
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Rounds done, and the accuracy then."""
    result: RunResult | None = None

    @property
    def accuracy(self) -> float | None:
        return self.curve[-1][1] if self.curve else None

    def add(self, record: RoundRecord) -> None:
        if record.accuracy is not None:
            self.curve.append((record.round + 1, record.accuracy))

    def close(self, result: RunResult) -> None:
        self.result = result
        if result.accuracy is not None and (not self.curve or self.curve[-1][0] < result.rounds):
            self.curve.append((result.rounds, result.accuracy))

    def settings(self, rounds: int, output: Path) -> list[str]:
        attack = [] if self.attack == "none" else [f"byzantine.attack={self.attack}"]
        return [
            f"aggregator={self.rule}",
            f"rounds={rounds}",
            f"output={quoted(str(output))}",
            f"evaluate.every={EVERY}",
            f"byzantine.count={BYZANTINE if attack else 0}",
            *attack,
        ]


def command(args: argparse.Namespace) -> int:
    """Every rule against every attack, over real processes; a table, and a picture."""
    if args.rounds is not None and args.rounds < 1:
        raise CommandError(f"--rounds should be at least 1. Found {args.rounds}.")
    rounds = args.rounds or ROUNDS
    try:
        folder = make_folder(user_path(args.output), f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    except OSError as error:
        raise CommandError(f"{args.output} cannot be written to: {error.strerror}") from error
    cases = [Case(rule, attack) for attack in ATTACKS for rule in RULES]
    with demo_view(args.format, cases, RULES, ATTACKS, rounds) as shown:
        interrupted = not all(_carried_out(case, rounds, folder, shown) for case in cases)
    if interrupted:
        return max(exit_code(case.result) for case in cases if case.result)
    write_atomically(folder / "demo.json", json.dumps([*_plain(cases)], indent=2).encode() + b"\n")
    shown.finish(folder, _picture(cases, folder / "demo.png"))
    return OK


def _carried_out(case: Case, rounds: int, folder: Path, shown: DemoView) -> bool:
    """Carry a case out; whether the next may follow."""
    config = load(None, case.settings(rounds, folder))

    def observe(record: RoundRecord) -> None:
        case.add(record)
        shown.advance(case, record)

    try:
        case.close(run(config, observe=observe, note=shown.note))
    except RunError as error:
        raise CommandError(str(error)) from error
    shown.done(case)
    return case.result is not None and case.result.outcome != "interrupted"


def _plain(cases: list[Case]) -> Iterator[dict[str, object]]:
    for case in cases:
        result = case.result.plain() if case.result else None
        yield {"rule": case.rule, "attack": case.attack, "curve": case.curve, "result": result}


def _picture(cases: list[Case], path: Path) -> str:
    """What to say about the picture: where it is, or why there is none."""
    try:
        from varangian.cli.views.accuracy_plot import curves
    except ImportError:
        return "no picture: install the extra `report` for one (pip install 'varangian[report]')"
    curves({attack: {c.rule: c.curve for c in cases if c.attack == attack} for attack in ATTACKS}, path)
    return f"picture: {path}"
