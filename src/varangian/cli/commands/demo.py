"""`varangian demo`: four rules against two attacks, as a table and a picture."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from varangian.cli.commands.run import exit_code, quote
from varangian.cli.main import OK, CommandError
from varangian.cli.views.demo_case import Case
from varangian.cli.views.demo_table import DemoView, demo_view
from varangian.config import load
from varangian.files import user_path, write_atomically
from varangian.launch import RunError, run
from varangian.launch.output.files import make_folder
from varangian.server.observability.record import RoundRecord

RULES = ("mean", "median", "krum", "flag")
ATTACKS = ("none", "uniform", "sign_flip")
BYZANTINE = 3
ROUNDS = 80
EVERY = 5
"""Rounds between two points of a curve."""


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
        interrupted = not all(_run_case(case, rounds, folder, shown) for case in cases)
    if interrupted:
        return max(exit_code(case.result) for case in cases if case.result)
    write_atomically(folder / "demo.json", json.dumps([*_plain(cases)], indent=2).encode() + b"\n")
    shown.finish(folder, _picture(cases, folder / "demo.png"))
    return OK


def _run_case(case: Case, rounds: int, folder: Path, shown: DemoView) -> bool:
    """Run a case; False when it was interrupted."""
    config = load(None, _settings(case, rounds, folder))

    def observe(record: RoundRecord) -> None:
        case.add(record)
        shown.advance(case, record)

    try:
        case.close(run(config, observe=observe, note=shown.note))
    except RunError as error:
        raise CommandError(str(error)) from error
    shown.done(case)
    return case.result is not None and case.result.outcome != "interrupted"


def _settings(case: Case, rounds: int, output: Path) -> list[str]:
    attack = [] if case.attack == "none" else [f"byzantine.attack={case.attack}"]
    return [
        f"aggregator={case.rule}",
        f"rounds={rounds}",
        f"output={quote(str(output))}",
        f"evaluate.every={EVERY}",
        f"byzantine.count={BYZANTINE if attack else 0}",
        *attack,
    ]


def _plain(cases: list[Case]) -> Iterator[dict[str, object]]:
    for case in cases:
        result = case.result.plain() if case.result else None
        yield {"rule": case.rule, "attack": case.attack, "curve": case.curve, "result": result}


def _picture(cases: list[Case], path: Path) -> str:
    """Draw the picture; returns the line that says where it is, or why there is none."""
    try:
        from varangian.cli.views.accuracy_plot import curves
    except ImportError:
        return "no picture: install the extra `report` for one (pip install 'varangian[report]')"
    curves({attack: {c.rule: c.curve for c in cases if c.attack == attack} for attack in ATTACKS}, path)
    return f"picture: {path}"
