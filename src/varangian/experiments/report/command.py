"""`varangian report`: runs as one page that works offline, and as the figures of a paper."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import printable
from varangian.experiments.report.page import page
from varangian.experiments.report.vega import MissingLibraryError
from varangian.experiments.results.read import read_runs
from varangian.experiments.results.run import ResultsError
from varangian.files import user_path, write_atomically


def command(args: argparse.Namespace) -> int:
    """Read the runs, and write the page."""
    notes: list[str] = []
    path = user_path(args.out)
    if path.is_dir():
        raise CommandError(f"{path} should be the file of the page, and it is a folder. Write -o {path / 'report.html'}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    try:
        results = read_runs(args.runs, notes.append)
        text = page(results, notes=notes)
    except (ResultsError, MissingLibraryError) as error:
        raise CommandError(str(error)) from error
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error
    print(f"report: {printable(str(path), 1000)}")
    if args.open:
        webbrowser.open(path.resolve().as_uri())
    return OK
