"""`varangian run`: train with a server and workers on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from varangian.cli.main import FAILED, INTERRUPTED, OK, CommandError
from varangian.cli.views.progress import progress
from varangian.config import RunConfig, advice, load
from varangian.launch import RunError, RunResult, run
from varangian.server.participation import DEFAULT, PARTICIPATION

SIGNALLED = 128
CODES = {"finished": OK, "failed": FAILED, "interrupted": INTERRUPTED}


def command(args: argparse.Namespace) -> int:
    """Train with everything on this machine."""
    config = load(args.config, with_shortcuts(args), os.environ)
    warn(config)
    report = importlib.import_module(args.report) if args.open else None
    if report is not None:
        report.check()
    result = run_and_show(config, args.format)
    if report is not None and result.folder is not None:
        report.open_report(result.folder)
    return exit_code(result)


def exit_code(result: RunResult) -> int:
    """0 or 1 by how the run ended; after a signal 128 and its number, as shells have it."""
    return SIGNALLED + result.signal if result.signal else CODES[result.outcome]


def run_and_show(config: RunConfig, view: str) -> RunResult:
    """Carry a run out and show it."""
    try:
        with progress(view, config.rounds, config.byzantine_names, declared=config.f) as shown:
            if PARTICIPATION.name(config.participation) != DEFAULT:
                shown.note(f"participation: {describe_participation(config)}")
            result = run(config, observe=shown.round, note=shown.note)
        shown.finish(result)
    except RunError as error:
        raise CommandError(str(error)) from error
    return result


def describe_participation(config: RunConfig) -> str:
    """`fedlaavg, participants 5`: the name, and what is not as it is by default."""
    ((name, given),) = config.resolved()["participation"].items()
    usual = {field.name: field.to_config(field.default) for field in PARTICIPATION.fields(name)}
    changed = {field: value for field, value in given.items() if value != usual[field]}
    return ", ".join([name, *(f"{field} {_short(value)}" for field, value in changed.items())])


def _short(value: Any) -> str:
    """`hinge (a 10.0, b 3)` of what a file holds."""
    if not isinstance(value, dict):
        return str(value)
    ((name, fields),) = value.items()
    return f"{name} ({', '.join(f'{key} {item}' for key, item in fields.items())})" if fields else name


def with_shortcuts(args: argparse.Namespace) -> list[str]:
    """The settings, and after them the options that are short for one."""
    short = {"backend": getattr(args, "backend", None), "output": getattr(args, "output", None)}
    return [
        *args.settings,
        *(f"{key}={quote(value)}" for key, value in short.items() if value is not None),
    ]


def quote(text: str) -> str:
    """The text as a YAML string, whatever is in it."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def warn(config: RunConfig) -> None:
    for sentence in advice(config):
        print(f"warning: {sentence}", file=sys.stderr)
