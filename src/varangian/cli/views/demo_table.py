"""The demo on the screen: a table that fills, plain lines, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from varangian.cli.views.demo_case import Case
from varangian.cli.views.progress import as_json, output
from varangian.cli.views.summary import percent, report_command
from varangian.cli.views.terminal import NOTE, printable

if TYPE_CHECKING:
    from varangian.server.observability.record import RoundRecord

TITLE = "Accuracy on held-out digits: 15 workers, of which 3 attack, over gRPC on this machine."
BAR = 0.9
"""Accuracy from which a cell is green; half of it and less is red."""


class DemoView(Protocol):
    """All cases of a demo; entered before the first and left after the last."""

    def __enter__(self) -> DemoView: ...
    def __exit__(self, *error: object) -> None: ...
    def note(self, text: str) -> None: ...
    def advance(self, case: Case, record: RoundRecord) -> None: ...
    def done(self, case: Case) -> None: ...
    def finish(self, folder: Path, picture: str) -> None: ...


def demo_view(
    kind: str, cases: Sequence[Case], rules: Sequence[str], attacks: Sequence[str], rounds: int
) -> DemoView:
    """The view for `--format`; auto is rich on a terminal and plain elsewhere."""
    if kind == "json":
        return JsonLines()
    grid = Grid(cases, rules, attacks, rounds)
    live = kind == "rich" or (kind == "auto" and sys.stdout.isatty())
    return LiveTable(grid) if live else PlainTable(grid)


class Grid:
    """Rules down, attacks across."""

    def __init__(
        self, cases: Sequence[Case], rules: Sequence[str], attacks: Sequence[str], rounds: int
    ) -> None:
        self._cases = {(case.rule, case.attack): case for case in cases}
        self._rules, self._attacks, self._rounds = rules, attacks, rounds

    def table(self) -> Table:
        table = Table()
        table.add_column("rule", style="bold")
        for attack in self._attacks:
            table.add_column("no attack" if attack == "none" else attack, justify="right", min_width=9)
        for rule in self._rules:
            table.add_row(rule, *(self._cell(self._cases[rule, attack]) for attack in self._attacks))
        return table

    def _cell(self, case: Case) -> Text:
        if case.accuracy is None:
            return Text("")
        if case.result is None:
            return Text(f"{case.curve[-1][0]}/{self._rounds} {percent(case.accuracy)}", "dim")
        colour = "green" if case.accuracy >= BAR else "red" if case.accuracy <= BAR / 2 else "yellow"
        return Text(percent(case.accuracy), colour)


class LiveTable:
    """The demo on a terminal: a table that fills."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._out = output(sys.stdout, None)
        self._console = Console(file=cast("TextIO", self._out))
        self._live = Live(grid.table(), console=self._console, refresh_per_second=4)

    def __enter__(self) -> LiveTable:
        self._console.print(TITLE)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._out.drain()

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text, NOTE)))

    def advance(self, case: Case, record: RoundRecord) -> None:
        if record.accuracy is not None:
            self._live.update(self._grid.table())

    def done(self, case: Case) -> None:
        self._live.update(self._grid.table())

    def finish(self, folder: Path, picture: str) -> None:
        self._console.print(Text(f"runs: {folder}\n{picture}\nreport: {report_command(folder)}"))
        self._out.close()


class PlainTable:
    """The demo in a log file: a line for each case, then the table."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._out = output(sys.stdout)

    def __enter__(self) -> PlainTable:
        self.note(TITLE)
        return self

    def __exit__(self, *error: object) -> None:
        self._out.drain()

    def note(self, text: str) -> None:
        self._out.write(printable(text, NOTE) + "\n")

    def advance(self, case: Case, record: RoundRecord) -> None:
        pass

    def done(self, case: Case) -> None:
        seconds = f"{case.result.seconds:.1f} s" if case.result else ""
        self.note(f"{case.rule:<8} {case.attack:<10} {percent(case.accuracy):>8}  {seconds}")

    def finish(self, folder: Path, picture: str) -> None:
        Console(file=cast("TextIO", self._out), color_system=None).print(self._grid.table())
        self.note(f"runs: {folder}")
        self.note(picture)
        self.note(f"report: {report_command(folder)}")
        self._out.close()


class JsonLines:
    """One object for each case, then one that says where everything is."""

    def __init__(self) -> None:
        self._out, self._notes = output(sys.stdout, as_json), output(sys.stderr)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        self._notes.drain()
        self._out.drain()

    def note(self, text: str) -> None:
        self._notes.write(printable(text, NOTE) + "\n")

    def advance(self, case: Case, record: RoundRecord) -> None:
        pass

    def done(self, case: Case) -> None:
        result = case.result.plain() if case.result else None
        self._out.write(json.dumps({"rule": case.rule, "attack": case.attack, "result": result}) + "\n")

    def finish(self, folder: Path, picture: str) -> None:
        end = {"folder": str(folder), "picture": picture, "report": report_command(folder)}
        self._out.write(json.dumps(end) + "\n")
        self._out.close()
