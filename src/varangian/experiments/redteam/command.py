"""`varangian redteam`: search for the attack that harms an aggregator most."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from varangian.cli.main import OK, CommandError
from varangian.cli.views.summary import percent
from varangian.cli.views.terminal import align
from varangian.config import RunConfig, loads
from varangian.config.identity import run_id
from varangian.config.overrides import apply_overrides, from_command_line, from_environment
from varangian.config.settings import groups
from varangian.config.yaml_text import read
from varangian.experiments.redteam.confirmation import Trained
from varangian.experiments.redteam.redteam import RESULT, Findings, Options, redteam, score_of
from varangian.experiments.redteam.search import MissingLibraryError
from varangian.experiments.sweep.sweep import usable_cores
from varangian.experiments.sweep.view import sweep_view
from varangian.files import user_path
from varangian.launch import RunError
from varangian.plugins import InputError
from varangian.registry import ConfigError, Problem

SHOWN = 12
"""Most lines of a table of short trainings."""


def command(args: argparse.Namespace) -> int:
    """Search, confirm, and print what was found."""
    config = read_config(args)
    folder = Path(config.output) / f"redteam-{run_id(config)}" if args.out is None else user_path(args.out)
    options = Options(
        folder=folder,
        generations=args.generations,
        seed=args.seed,
        seeds=args.seeds,
        budget=args.budget,
        jobs=args.jobs or usable_cores(),
    )
    with sweep_view("json" if args.format == "json" else "plain") as view:
        try:
            findings = redteam(config, options, view.note)
        except (MissingLibraryError, RunError, InputError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{folder} cannot be written: {error.strerror or error}.") from error
        view.finish([*describe(findings, folder)], findings.plain())
    return OK


def read_config(args: argparse.Namespace) -> RunConfig:
    """The configuration of the runs, with attackers; all f unless their number is set.

    Raises:
        ConfigError: with every problem found.
    """
    if args.config is None:
        rule, hint = "the aggregator to attack should be given", "As `varangian redteam nnm+trimmed_mean`."
        raise ConfigError([Problem("AGGREGATOR", rule, hint=hint)])
    base = {} if args.file is None else read(user_path(args.file))
    if base.get("backend", "simulate") == "simulate":
        simulate = base.get("simulate")
        given = simulate if isinstance(simulate, dict) else {}
        base = {**base, "backend": "simulate", "simulate": {"gradients": "batched", **given}}
    typed = from_command_line([f"aggregator={args.config}", *args.settings])
    written = apply_overrides(base, [*from_environment(os.environ), *typed], groups())
    found = written.get("byzantine")
    byzantine: dict[str, Any] = dict(found) if isinstance(found, dict) else {}
    if byzantine.get("attack") is not None:
        rule = "is what the search is for, so it cannot be set"
        raise ConfigError([Problem("byzantine.attack", rule, byzantine["attack"], "Leave it out.")])
    if byzantine.get("knows") not in (None, "all"):
        rule = "should be 'all': a red team's attackers know everything"
        raise ConfigError([Problem("byzantine.knows", rule, byzantine["knows"])])
    attack = {"composite": {"steps": ["alie 1.5"]}}
    attackers = {**byzantine, "attack": attack, "knows": "all"}
    if not byzantine.get("count"):
        attackers["count"] = loads({**written, "byzantine": {**byzantine, "count": 0}}).f
    if not attackers["count"]:
        raise ConfigError([Problem("f", "should be at least 1, as somebody has to attack", 0)])
    return loads({**written, "byzantine": attackers})


def describe(findings: Findings, folder: Path) -> Iterator[str]:
    """The lines of the end: the front, the trainings, the strongest attack."""
    yield ""
    yield (
        f"front of {findings.evaluations} policies on recorded rounds, {findings.generations} generations:"
    )
    front = [(percent(one.fitness.damage), f"{one.fitness.effort:.2f}", one.name) for one in findings.front]
    yield from align([("  damage", "effort", "policy"), *((f"  {a}", b, c) for a, b, c in front)], left=[2])
    yield ""
    yield "short trainings, the strongest attacks first:"
    yield from _table(findings.short[:SHOWN])
    yield ""
    yield "full trainings:"
    yield from _table(findings.full)
    for name, reason in findings.stopping.items():
        yield f"stops the training: {name}: {reason}"
    for name, reason in findings.refused.items():
        yield f"not compared: {name}: {reason}"
    yield ""
    if findings.untried:
        yield f"{findings.untried} attacks were not trained with, for want of time or for an error"
    if findings.cut:
        yield "the budget has ended it; type the command again with a larger one, and it goes on"
    yield f"{findings.runs} trainings, {findings.seconds:.0f} s; {folder / RESULT}"
    if findings.index is not None:
        yield f"the report: varangian report {shlex.quote(str(findings.index))}"
    yield f"strongest: {score_of(findings.strongest)} under {findings.strongest.name}"
    if findings.line is not None:
        yield findings.line


def _table(trained: tuple[Trained, ...]) -> Iterator[str]:
    lines = [(f"  {score_of(one)}", one.name) for one in trained]
    yield from align(lines) if lines else ("  none",)
