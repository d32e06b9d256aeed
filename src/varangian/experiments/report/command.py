"""`varangian report`: runs as one page that works offline, and as the figures of a paper."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from varangian.cli.main import OK, CommandError, Terminated
from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.ranks.read import RanksError, is_record
from varangian.experiments.ranks.read import read as read_record
from varangian.experiments.report.follow import LivePage, PageServer, follow
from varangian.experiments.report.page import write_page, write_ranks_page
from varangian.experiments.report.rendering import MissingLibraryError, check_libraries
from varangian.experiments.results.filters import EVERYTHING, Filter
from varangian.experiments.results.read import Results, read_runs
from varangian.experiments.results.run import ResultsError
from varangian.experiments.results.study import Study
from varangian.files import user_path

NAME = "report.html"


def command(args: argparse.Namespace) -> int:
    """Read the runs, and write the page or serve it."""
    with _as_sentences():
        paths, only = _split(args.runs)
        records = [path for path in map(user_path, paths) if is_record(path)]
        if records:
            return _of_ranks(args, paths, records[0])
        if args.follow:
            check_libraries()
            _follow(args, paths, only)
            return OK
        path = _writable(user_path(args.out))
        folder = user_path(args.figures) if args.figures else None
        notes: list[str] = []
        results = only(read_runs(paths, notes.append))
        for note in notes:
            print(f"note: {printable(note, NOTE)}", file=sys.stderr)
        _write(results, path, notes, only)
        print(f"report: {printable(str(path), NOTE)}")
        if folder is not None:
            from varangian.experiments.results.figures.draw import draw

            files = draw(Study.of(results), folder)
            print(f"figures: {len(files)} files in {printable(str(folder), NOTE)}")
    if args.open:
        webbrowser.open(path.resolve().as_uri())
    return OK


def _of_ranks(args: argparse.Namespace, paths: Sequence[str], path: Path) -> int:
    """The report about the steps of ranks that were reduced without a server."""
    if len(paths) > 1 or args.figures or args.follow:
        raise CommandError(
            f"{path} is a record of ranks: it has a report by itself, without --figures and --follow"
        )
    found = read_record(path)
    for sentence in found.sentences:
        print(printable(sentence, NOTE))
    out = _writable(user_path(args.out))
    try:
        write_ranks_page(found, out)
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}. Choose another -o FILE") from error
    print(f"report: {printable(str(out), NOTE)}")
    if args.open:
        webbrowser.open(out.resolve().as_uri())
    return OK


def check() -> None:
    """Whether a report can be made here, before a run that should end with one.

    Raises:
        CommandError: a library is missing.
    """
    with _as_sentences():
        check_libraries()


def open_report(folder: Path) -> None:
    """Write the report of one run into its folder, and open it in the browser.

    Raises:
        CommandError: the run cannot be read, or the page cannot be written.
    """
    with _as_sentences():
        _write(read_runs([folder]), folder / NAME)
    webbrowser.open((folder / NAME).resolve().as_uri())


def _split(words: Sequence[str]) -> tuple[list[str], Filter]:
    """Paths of runs, and the settings that runs must have; a file with `=` in its name is a path."""
    settings = [word for word in words if "=" in word and not user_path(word).exists()]
    paths = [word for word in words if word not in settings]
    if not paths:
        raise CommandError(
            f"a report needs runs beside {' '.join(settings)}. Name a folder, or a .sweep.json"
        )
    return paths, Filter.of(settings)


def _write(results: Results, path: Path, notes: Sequence[str] = (), only: Filter = EVERYTHING) -> None:
    try:
        write_page(results, path, notes=notes, only=only)
    except ResultsError as error:
        hint = (
            " A run that goes on can be looked at with --follow." if any(r.running for r in results) else ""
        )
        raise CommandError(f"{error}{hint}") from error
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}. Choose another -o FILE") from error


@contextmanager
def _as_sentences() -> Generator[None]:
    """Errors of the results and of missing libraries, as a command tells them."""
    try:
        yield
    except (ResultsError, RanksError, MissingLibraryError) as error:
        raise CommandError(str(error)) from error
    except ImportError as error:  # figures alone need it
        raise CommandError("figures need matplotlib: pip install 'varangian[report]'") from error


def _writable(path: Path) -> Path:
    """The path, where a file can be: said before the runs are read, which may take a while."""
    if path.is_dir():
        raise CommandError(f"{path} should be a file, and it is a folder. Write -o {path / NAME}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    return path


def _follow(args: argparse.Namespace, paths: Sequence[str], only: Filter) -> None:
    live = LivePage(paths, only)
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
