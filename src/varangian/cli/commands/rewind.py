"""`varangian rewind`: list the checkpoints of a run, or make a run that goes on from one of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from varangian.cli.main import OK, CommandError
from varangian.launch.checkpoints.rewind import KeptCheckpoint, branch, kept_checkpoints
from varangian.launch.checkpoints.worker_states import WorkerStates
from varangian.launch.result import RunError
from varangian.registry import ConfigError, Problem
from varangian.resources import readable

HEADINGS = ("round", "score", "kept as", "size", "written", "states of workers")


def command(args: argparse.Namespace) -> int:
    """List checkpoints, or go back to one."""
    run = Path(args.folder)
    try:
        if args.round is None:
            if args.output is not None:
                raise ConfigError([Problem("--output", "is of use with --round only")])
            found = kept_checkpoints(run)
            print("\n".join(table(found)) if found else f"{run} has no checkpoints")
            return OK
        made = branch(run, args.round, None if args.output is None else Path(args.output))
        # One that goes on may have removed it by now.
        states = next((one.workers for one in kept_checkpoints(run) if one.round == args.round), None)
    except RunError as error:
        raise CommandError(str(error)) from error
    print(f"{made} begins with round {args.round} of {run}; --resume {made} goes on with it")
    if states is not None:
        print(f"of round {args.round} {describe(states)}")
    return OK


def describe(states: WorkerStates) -> str:
    """What there is of the workers' own states, and what becomes of those who have none."""
    if not states.there:
        return (
            "no states of workers are here: those elsewhere go on with their own if they have kept it, and "
            "others without what they remember of earlier rounds, as their momentum"
        )
    if not states.missing:
        return "the states of all workers are here, too"
    names = ", ".join(states.missing)
    return (
        f"no state is here of {names}: they go on without what they remember of earlier rounds, as their "
        "momentum"
    )


def table(found: Iterable[KeptCheckpoint]) -> list[str]:
    """A line for each checkpoint, below a heading."""
    rows = [HEADINGS, *map(_row, found)]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(kept: KeptCheckpoint) -> tuple[str, ...]:
    if kept.damage:
        return (str(kept.round), "", f"cannot be used: {kept.damage}", readable(kept.bytes), "", "")
    score = "" if kept.score is None else f"{kept.score.name} {kept.score.value:.4g}"
    workers = "" if kept.workers is None else str(kept.workers)
    return (str(kept.round), score, ", ".join(kept.why), readable(kept.bytes), kept.written, workers)
