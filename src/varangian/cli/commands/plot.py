"""`varangian plot`: accuracy and loss of runs over their rounds, as a picture. Needs matplotlib."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from varangian.cli.main import OK, CommandError
from varangian.cli.views.run_plot import Series, draw
from varangian.cli.views.terminal import printable
from varangian.files import user_path

SCORES = ("accuracy", "loss", "train_loss")
RECORD = "rounds.jsonl"


def command(args: argparse.Namespace) -> int:
    """Read the records of runs, which may still be going on, and draw them."""
    folders = [user_path(run) for run in args.runs]
    runs = {}
    for folder, label in zip(folders, labels(folders), strict=True):
        runs[label] = series(folder)
    path = user_path(args.out) if args.out else folders[0] / "plot.png"
    try:
        draw(runs, path)
    except ImportError as error:
        raise CommandError("a picture needs matplotlib: pip install 'varangian[report]'") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be written: {error}") from error
    print(f"picture: {printable(str(path), 1000)}")
    return OK


def labels(folders: list[Path]) -> list[str]:
    """The names of the folders; whole paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def series(folder: Path) -> Series:
    """Scores over rounds, by name: only those that the run has.

    Raises:
        CommandError: there is no record of a run, or no evaluation in it yet.
    """
    found: Series = {}
    for record in records(folder):
        metrics = record.get("metrics")
        numbers = {name: record.get(name) for name in SCORES} | (
            metrics if isinstance(metrics, dict) else {}
        )
        for name, value in numbers.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append((record["round"] + 1, value))
    if not found:
        raise CommandError(f"{folder} has no evaluation yet: there is nothing to draw")
    return found


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The rounds of a run."""
    path = folder / RECORD
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # another line may be on its way
                    record = json.loads(line)
                    if not isinstance(record, dict) or not isinstance(record.get("round"), int):
                        raise ValueError("Found something else than the record of a round.")
                    yield record
    except OSError as error:
        raise CommandError(f"{folder} should be the folder of a run. {RECORD}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} should have a JSON object in each line: {error}") from error
