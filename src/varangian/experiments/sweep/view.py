"""A sweep on standard output: a live table, plain lines, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TextIO

from varangian.cli.views.progress import as_json, output
from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.sweep.pace import duration
from varangian.experiments.sweep.progress import Outcome, Progress, View, found, score
from varangian.launch.output.queued_writer import QueuedWriter


class SweepView(View, Protocol):
    """A sweep on the screen; entered before it begins and left after the last line."""

    def __enter__(self) -> SweepView: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def finish(self, lines: list[str], facts: Mapping[str, Any]) -> None:
        """The end: lines for people, facts for programs."""
        ...


def sweep_view(kind: str, out: TextIO | None = None) -> SweepView:
    """The view for `--format`; auto is rich on a terminal and plain elsewhere."""
    stream: TextIO = sys.stdout if out is None else out
    if kind == "json":
        return Json(output(stream, as_json), output(sys.stderr))
    if kind == "rich" or (kind == "auto" and stream.isatty()):
        from varangian.experiments.sweep.live import Live

        return Live(output(stream, None))
    return Plain(output(stream))


class Plain:
    """A line for each run that ends, for a log."""

    def __init__(self, out: QueuedWriter) -> None:
        self._out = out

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def begin(self, progress: Progress) -> None:
        self.note(found(progress))

    def note(self, text: str) -> None:
        self._out.write(printable(text, NOTE) + "\n")

    def ended(self, progress: Progress, outcome: Outcome) -> None:
        done, points = len(progress.outcomes), len(progress.plan.points)
        left = progress.seconds_left
        time = "" if outcome.seconds is None else f"  {outcome.seconds:.1f} s"
        rest = f"  (time left: {duration(left)})" if left else ""
        self.note(f"{done}/{points}  {outcome.point.label}  {score(outcome)}{time}{rest}")

    def update(self, progress: Progress) -> None:
        del progress

    def finish(self, lines: list[str], facts: Mapping[str, Any]) -> None:
        del facts
        for line in lines:
            self._out.write(f"{line}\n")


class Json:
    """One object a line: the sweep, every run that ends, the result; nothing else on this stream."""

    def __init__(self, out: QueuedWriter, notes: QueuedWriter) -> None:
        self._out, self._notes = out, notes

    def __enter__(self) -> Json:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notes.close()
        self._out.close()

    def begin(self, progress: Progress) -> None:
        plan = progress.plan
        facts = {
            "name": plan.grid.name,
            "points": len(plan.points),
            "done": progress.found,
            "excluded": len(plan.excluded),
            "impossible": [left.plain() for left in plan.impossible],
            "file": str(plan.file),
        }
        self._write("sweep", facts)

    def note(self, text: str) -> None:
        self._notes.write(printable(text, NOTE) + "\n")

    def ended(self, progress: Progress, outcome: Outcome) -> None:
        facts = {
            "id": outcome.point.id,
            "settings": dict(outcome.point.settings),
            "seed": outcome.point.seed,
            "state": outcome.state,
            "accuracy": outcome.accuracy,
            "loss": outcome.loss,
            "reason": outcome.reason,
            "seconds": outcome.seconds,
            "folder": str(progress.plan.output / outcome.point.id),
            "seconds_left": progress.seconds_left,
        }
        self._write("run", facts)

    def update(self, progress: Progress) -> None:
        del progress

    def finish(self, lines: list[str], facts: Mapping[str, Any]) -> None:
        del lines
        self._write("result", facts)

    def _write(self, key: str, facts: Mapping[str, Any]) -> None:
        self._out.write(json.dumps({key: facts}, default=str) + "\n")
