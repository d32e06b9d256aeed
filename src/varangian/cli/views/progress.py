"""Progress of a run on standard output: a live table, plain lines, or JSON for programs.

Output goes through a queue (`varangian.launch.output.queued_writer`), so an unread one never holds the run
up: when its queue is full the oldest lines are dropped, and a line says how many. The record in the run
folder has all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from varangian.cli.views.summary import RunSummary, scores_of, summary_lines
from varangian.cli.views.terminal import NOTE, printable
from varangian.launch.output.logs import gap_as_json
from varangian.launch.output.queued_writer import QueuedWriter, writer
from varangian.structured_logs import Format, about, json_line

if TYPE_CHECKING:
    from varangian.launch import RunResult
    from varangian.server.observability.record import RoundRecord

PLAIN_LINES = 20
"""Lines that a plain run prints, whatever its rounds."""


class Progress(Protocol):
    """One run on the screen; entered before the first round and left after the last."""

    def __enter__(self) -> Progress: ...
    def __exit__(self, *error: object) -> None: ...
    def note(self, text: str) -> None:
        """Print a remark besides the rounds. May be called from any thread."""
        ...

    def round(self, record: RoundRecord) -> None: ...
    def finish(self, result: RunResult) -> None:
        """The end of a run; waits for the output to be written, but not for long."""
        ...


def progress(
    kind: str,
    rounds: int,
    byzantine: Sequence[str],
    out: TextIO | None = None,
    *,
    declared: int | None = None,
) -> Progress:
    """The view for `--format`; auto is rich on a terminal and plain elsewhere.

    Args:
        kind: of the view; `log` is that of `--log-format json`.
        rounds: of the run.
        byzantine: workers that attack, where they are known.
        out: by default standard output.
        declared: the f of the run.
    """
    stream: TextIO = sys.stdout if out is None else out
    if kind == "log":
        return Logged(rounds, writer(sys.stderr, "standard error", gap_as_json))
    if kind == "json":
        return Json(output(stream, as_json), output(sys.stderr))
    if kind == "rich" or (kind == "auto" and stream.isatty()):
        from varangian.cli.views.live import Live

        return Live(rounds, byzantine, output(stream, None), declared)
    return Plain(rounds, byzantine, output(stream), declared)


def as_text(lost: int) -> str:
    """The line in place of those that were dropped."""
    return f"... {lost} lines were dropped, as nobody read this output\n"


def as_json(lost: int) -> str:
    """The same for programs."""
    return json.dumps({"dropped_lines": lost}) + "\n"


def output(stream: TextIO, gap: Callable[[int], str] | None = as_text) -> QueuedWriter:
    """A stream of this process, written to without waiting for it."""
    return writer(stream, "standard error" if stream is sys.stderr else "standard output", gap)


def view_for(kind: str, form: Format) -> str:
    """The view for `--format`: log lines with `--log-format json`, unless asked for otherwise."""
    return "log" if kind == "auto" and form == "json" else kind


class Logged:
    """Events as log lines on standard error: rounds, notes and the end. Standard output stays empty."""

    def __init__(self, rounds: int, out: QueuedWriter) -> None:
        self._rounds, self._out = rounds, out
        self._run: str | None = None
        self._round: int | None = None

    def __enter__(self) -> Logged:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._out.close()

    def note(self, text: str) -> None:
        level, bare = ("warning", text[9:]) if text.startswith("warning: ") else ("info", text)
        self._say(level, "note", printable(bare, NOTE), {"round": self._round})

    def round(self, record: RoundRecord) -> None:
        self._round = record.round
        done, skipped = f"round {record.round + 1}/{self._rounds}", record.skipped
        scores = "  ".join(f"{name} {value}" for name, value in scores_of(record.scores))
        what = f"no update: {skipped}" if skipped is not None else scores if record.loss is not None else ""
        facts = {
            "round": record.round,
            **{name: getattr(record, name) for name in ("loss", "accuracy", "train_loss", "effective")},
            "seconds": sum(record.seconds.values()),
            **{
                name: getattr(record, name) or None
                for name in ("missing", "declined", "dropped", "gated", "revoked")
            },
        }
        level, name = ("warning", "round_skipped") if skipped is not None else ("info", "round")
        self._say(level, name, printable(f"{done}  {what}".rstrip(), NOTE), facts)

    def finish(self, result: RunResult) -> None:
        level = "info" if result.outcome == "finished" else "warning"
        self._say(level, f"run_{result.outcome}", printable(result.reason, NOTE), result.plain())
        self._out.close()

    def _say(self, level: str, name: str, message: str, facts: Mapping[str, Any]) -> None:
        self._run = about().run or self._run  # the end is told outside the tasks of the run
        self._out.write(json_line(level, name, message, {"run": self._run, **facts}) + "\n")


class Json:
    """One object a line: every round, then the result; nothing else on this stream."""

    def __init__(self, out: QueuedWriter, notes: QueuedWriter) -> None:
        self._out, self._notes = out, notes

    def __enter__(self) -> Json:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._close()

    def note(self, text: str) -> None:
        self._notes.write(printable(text, NOTE) + "\n")

    def round(self, record: RoundRecord) -> None:
        self._out.write(record.json() + "\n")

    def finish(self, result: RunResult) -> None:
        self._out.write(json.dumps({"result": result.plain()}) + "\n")
        self._close()

    def _close(self) -> None:
        self._notes.close()
        self._out.close()


class Plain:
    """Plain progress: some twenty lines for a log file, and a summary."""

    def __init__(
        self, rounds: int, byzantine: Sequence[str], out: QueuedWriter, declared: int | None = None
    ) -> None:
        self._rounds, self._byzantine, self._out = rounds, byzantine, out
        self._every = rounds / PLAIN_LINES
        self._next = 0.0
        self._summary = RunSummary(declared)

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._out.close()

    def note(self, text: str) -> None:
        self._out.write(printable(text, NOTE) + "\n")

    def round(self, record: RoundRecord) -> None:
        self._summary.add(record)
        done = record.round + 1
        if record.skipped is not None:
            self.note(f"round {done}/{self._rounds}: no update: {record.skipped}")
        elif record.loss is not None and (done >= self._next or done == self._rounds):
            self._next = done + self._every
            self.note(f"round {done}/{self._rounds}  {self._state()}")

    def finish(self, result: RunResult) -> None:
        for name, value in summary_lines(result, self._summary, self._byzantine):
            self.note(f"{name:<15} {value}")
        self._out.close()

    def _state(self) -> str:
        scores = [f"{name} {value}" for name, value in scores_of(self._summary.scores)]
        return "  ".join([*scores, f"{self._summary.rate:.1f} rounds/s"])
