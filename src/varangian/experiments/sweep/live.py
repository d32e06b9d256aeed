"""The live view of a sweep on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.sweep.pace import duration
from varangian.experiments.sweep.progress import Outcome, Progress, counts, found, score
from varangian.launch.output.queued_writer import QueuedWriter

SHOWN = 16
"""Runs in progress that are shown."""


class Live:
    """A bar, the counts and the runs in progress, redrawn four times a second; failures stay above it."""

    def __init__(self, out: QueuedWriter) -> None:
        self._out = out
        self._console = Console(file=cast("TextIO", out))
        self._screen = Screen(Text(""), console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        self._out.close()

    def begin(self, progress: Progress) -> None:
        self.note(found(progress))
        self._screen.start()

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text, NOTE)))

    def ended(self, progress: Progress, outcome: Outcome) -> None:
        if outcome.state != "finished":
            self.note(f"{outcome.point.label}  {score(outcome)}")
        self.update(progress)

    def update(self, progress: Progress) -> None:
        self._screen.update(self._view(progress))

    def finish(self, lines: list[str], facts: Mapping[str, Any]) -> None:
        del facts
        self._screen.stop()
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)

    def _view(self, progress: Progress) -> Group:
        points = {point.id: point for point in progress.plan.points}
        bar = Table.grid(padding=(0, 2))
        bar.add_column(max_width=60)
        bar.add_column(no_wrap=True)
        left = Text(f"time left {duration(progress.seconds_left)}")
        bar.add_row(ProgressBar(total=len(points), completed=len(progress.outcomes)), left)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, justify="right")
        now = time.monotonic()
        for id, began in [*progress.running.items()][:SHOWN]:
            point = points[id]
            rounds = f"round {progress.rounds.get(id, 0)}/{point.config.rounds}"
            table.add_row(Text(printable(point.label)), Text(rounds), Text(f"{now - began:.0f} s"))
        return Group(bar, Text(counts(progress)), table)
