"""`varangian report`: runs as one page that works offline, and as the figures of a paper."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from varangian.cli.main import OK, CommandError, Terminated
from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.report.follow import LivePage, PageServer, follow
from varangian.experiments.report.page import page
from varangian.experiments.report.rendering import MissingLibraryError, check_libraries
from varangian.experiments.results.read import Results, read_runs
from varangian.experiments.results.run import ResultsError
from varangian.files import user_path, write_atomically

NAME = "report.html"


def command(args: argparse.Namespace) -> int:
    """Read the runs, and write the page or serve it."""
    try:
        check_libraries()
        if args.follow:
            _follow(args)
            return OK
        path = _writable(user_path(args.out))
        results = _read(args.runs)
        write_report(results, path)
    except (ResultsError, MissingLibraryError) as error:
        raise CommandError(str(error)) from error
    print(f"report: {printable(str(path), NOTE)}")
    if args.open:
        webbrowser.open(path.resolve().as_uri())
    return OK


def check() -> None:
    """Whether a report can be made here, before a run that should end with one.

    Raises:
        CommandError: a library is missing.
    """
    try:
        check_libraries()
    except MissingLibraryError as error:
        raise CommandError(str(error)) from error


def open_report(folder: Path) -> None:
    """Write the report of one run into its folder, and open it in the browser.

    Raises:
        CommandError: the run cannot be read, or the page cannot be written.
    """
    try:
        write_report(read_runs([folder]), folder / NAME)
    except (ResultsError, MissingLibraryError) as error:
        raise CommandError(str(error)) from error
    webbrowser.open((folder / NAME).resolve().as_uri())


def write_report(results: Results, path: Path, notes: Sequence[str] = ()) -> None:
    """Write the page about these runs, the whole of it or nothing.

    Raises:
        ResultsError: no run counts, or one is damaged.
        MissingLibraryError: the extra `report` is not installed.
        CommandError: the file cannot be written.
    """
    text = page(results, notes=notes)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}. Choose another place with -o FILE"
        ) from error


def _read(paths: Sequence[str]) -> Results:
    return read_runs(paths, lambda note: print(f"note: {printable(note, NOTE)}", file=sys.stderr))


def _writable(path: Path) -> Path:
    """The path, where a file can be: said before the runs are read, which may take a while."""
    if path.is_dir():
        raise CommandError(f"{path} should be a file, and it is a folder. Write -o {path / NAME}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    return path


def _follow(args: argparse.Namespace) -> None:
    live = LivePage(args.runs)
    server = PageServer(live)
    print(f"report: {server.url}", flush=True)
    print("It is refreshed as rounds close. Ctrl-C ends it.", flush=True)
    if args.open:
        webbrowser.open(server.url)
    try:
        follow(live, server, lambda sentence: print(sentence, flush=True))
    except Terminated:
        raise
    except KeyboardInterrupt:
        print()
