"""`varangian plot`: accuracy and loss of runs over their rounds, as a picture. Needs matplotlib."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.results.run import ResultsError, Run
from varangian.files import user_path


def command(args: argparse.Namespace) -> int:
    """Read the records of runs, which may still be going on, and draw them."""
    folders = [user_path(run) for run in args.runs]
    try:
        runs = {label: series(Run(folder)) for folder, label in zip(folders, labels(folders), strict=True)}
    except ResultsError as error:
        raise CommandError(str(error)) from error
    path = user_path(args.out) if args.out else folders[0] / "plot.png"
    try:
        from varangian.experiments.results.figures.run_plot import draw

        draw(runs, path)
    except ImportError as error:
        raise CommandError("a picture needs matplotlib: pip install 'varangian[report]'") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be written: {error}") from error
    print(f"picture: {printable(str(path), NOTE)}")
    return OK


def labels(folders: list[Path]) -> list[str]:
    """The names of the folders; whole paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def series(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Scores over rounds, by name: only those that the run has.

    Raises:
        ResultsError: there is no record of a run, or no evaluation in it yet.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for name in run.metrics:
        rounds, values = run.columns(name)
        points = zip(rounds.tolist(), values.tolist(), strict=True)
        if finite := [(round, value) for round, value in points if math.isfinite(value)]:
            found[name] = finite
    if not found:
        raise ResultsError(f"{run.folder} has no evaluation yet: there is nothing to draw")
    return found
