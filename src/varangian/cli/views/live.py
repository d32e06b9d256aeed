"""The live view of a run on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO, cast

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from varangian.cli.views.summary import RunSummary, percent, scores_of, summary_lines
from varangian.cli.views.terminal import NOTE, printable

if TYPE_CHECKING:
    from varangian.launch import RunResult
    from varangian.launch.output.queued_writer import QueuedWriter
    from varangian.server.observability.record import RoundRecord

DISTRUSTED = 3
"""The number of workers shown, those with the least weight."""


class Live:
    """A table that is redrawn four times a second."""

    def __init__(
        self, rounds: int, byzantine: Sequence[str], out: QueuedWriter, declared: int | None = None
    ) -> None:
        self._rounds, self._byzantine = rounds, byzantine
        self._summary = RunSummary(declared)
        self._out = out
        self._console = Console(file=cast("TextIO", out))
        self._screen = Screen(self._view(), console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Live:
        self._screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.stop()
        if any(error):
            self._out.close()

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text, NOTE)))

    def round(self, record: RoundRecord) -> None:
        self._summary.add(record)
        if record.skipped is not None:
            self.note(f"round {record.round + 1}: no update: {record.skipped}")
        self._screen.update(self._view())

    def finish(self, result: RunResult) -> None:
        self._screen.stop()
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in summary_lines(result, self._summary, self._byzantine):
            table.add_row(Text(printable(name)), Text(printable(value)))
        self._console.print(table)
        self._out.close()

    def _view(self) -> Group:
        """A bar, the scores, and who stands out; each on lines of its own, whatever the width."""
        summary = self._summary
        bar = Table.grid(padding=(0, 2))
        bar.add_column(max_width=60)
        bar.add_column(no_wrap=True)
        bar.add_column(no_wrap=True)
        total = Text(f"round {summary.rounds}/{self._rounds}")
        rate = Text(f"{summary.rate:.1f} rounds/s")
        bar.add_row(ProgressBar(total=self._rounds, completed=summary.rounds), total, rate)
        scores = [Text.assemble((f"{printable(n)} ", "bold"), v) for n, v in scores_of(summary.scores)]
        return Group(bar, Columns(scores, padding=(0, 3)), self._distrusted())

    def _distrusted(self) -> Text:
        """Byzantine workers in red: the server does not know them, but this screen may."""
        believed = self._summary.least_believed(DISTRUSTED)
        text = Text("least believed  " if believed else "")
        for worker, share in believed:
            text.append(
                f"{printable(worker)} {percent(share)}  ", "red" if worker in self._byzantine else ""
            )
        for worker, times in self._summary.drops.most_common(DISTRUSTED):
            text.append(f"{printable(worker)} dropped {times}x  ", "red")
        return text
