"""`varangian run`: train with a server and workers on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.cli.main import FAILED, INTERRUPTED, OK, CommandError
from varangian.cli.views.progress import progress, view_for
from varangian.config import RunConfig, advice, load
from varangian.config.overrides import from_environment
from varangian.launch import Note, RunError, RunResult, run
from varangian.launch.checkpoints.resume import RunOver, find_run, resume, settings_of, with_seed_of
from varangian.launch.checkpoints.resumed import Resumed
from varangian.registry import ConfigError, Problem
from varangian.server.participation import DEFAULT, PARTICIPATION
from varangian.structured_logs import Format, in_format, json_line, log_format

SIGNALLED = 128
CODES = {"finished": OK, "failed": FAILED, "interrupted": INTERRUPTED}


def command(args: argparse.Namespace) -> int:
    """Train with everything on this machine."""
    form = log_format(args.log_format)
    config, going_on = configuration(args, with_shortcuts(args))
    warn(config, form)
    report = importlib.import_module(args.report) if args.open else None
    if report is not None:
        report.check()
    try:
        with in_format(form):
            result = run_and_show(config, view_for(args.format, form), going_on)
    except RunOver as over:
        print(over)
        return OK
    if report is not None and result.folder is not None:
        report.open_report(result.folder)
    return exit_code(result)


def exit_code(result: RunResult) -> int:
    """0 or 1 by how the run ended; after a signal 128 and its number, as shells have it."""
    return SIGNALLED + result.signal if result.signal else CODES[result.outcome]


@dataclass(frozen=True)
class GoingOn:
    """`--resume`: the folder of a run that is to go on, if there is one."""

    folder: Path | None
    force: bool

    def resume(
        self, config: RunConfig, note: Note, *, at_end: bool = False
    ) -> tuple[RunConfig, Resumed | None]:
        """As `varangian.launch.checkpoints.resume`; nothing where a new run begins."""
        if self.folder is not None:
            return resume(config, self.folder, note, force=self.force, at_end=at_end)
        note(f"there is no run to resume in {config.output}; a new one begins")
        return config, None


def configuration(
    args: argparse.Namespace, settings: Sequence[str], *, whole: bool = True
) -> tuple[RunConfig, GoingOn | None]:
    """The configuration of a run, and the run that goes on; None if a new one begins.

    Raises:
        ConfigError: with every problem found.
        CommandError: `--resume` names no folder of a run.
    """
    if args.resume is None:
        if args.force:
            raise ConfigError([Problem("--force", "is of use with --resume only")])
        return load(args.config, settings, os.environ, whole=whole), None
    written = args.config is not None or bool(args.settings) or getattr(args, "backend", None) is not None
    try:
        folder = Path(args.resume) if args.resume else None
        if folder is None or args.config is not None:
            found = load(args.config, settings, os.environ, whole=whole)
            anything = not (written or from_environment(os.environ))
            over = getattr(args, "until_done", False)
            folder = folder or find_run(found, whatever=anything, over=over)
            if folder is None:
                return found, GoingOn(None, args.force)
            if args.config is not None:
                return with_seed_of(found, settings_of(folder)), GoingOn(folder, args.force)
        # The settings of the run stand in the place of a file.
        return settings_of(folder, settings, os.environ, whole=whole), GoingOn(folder, args.force)
    except RunError as error:
        raise CommandError(str(error)) from error


def run_and_show(config: RunConfig, view: str, going_on: GoingOn | None = None) -> RunResult:
    """Carry a run out and show it."""
    try:
        with progress(view, config.rounds, config.byzantine_names, declared=config.f) as shown:
            if PARTICIPATION.name(config.participation) != DEFAULT:
                shown.note(f"participation: {describe_participation(config)}")
            config, resumed = (config, None) if going_on is None else going_on.resume(config, shown.note)
            result = run(config, observe=shown.round, note=shown.note, resume=resumed)
        shown.finish(result)
    except RunOver:
        raise
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


def warn(config: RunConfig, form: Format) -> None:
    """Say on standard error what is allowed, but hardly meant."""
    for sentence in advice(config):
        line = json_line("warning", "advice", sentence, {}) if form == "json" else f"warning: {sentence}"
        print(line, file=sys.stderr)
