"""Progress of a run on standard output: a live table, plain lines, or JSON for programs.

Output goes through a queue (`varangian.launch.output.queued_writer`), so an unread one never holds the run
up: when its queue is full the oldest lines are dropped, and a line says how many. The record in the run
folder has all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from varangian.cli.views.summary import RunSummary
from varangian.cli.views.terminal import NOTE, printable
from varangian.launch.output.queued_writer import QueuedWriter, writer

if TYPE_CHECKING:
    from varangian.launch import RunResult
    from varangian.server.observability.record import RoundRecord, Scores

FEW = 5
"""So many workers are named one by one."""
PLAIN_LINES = 20
"""How many lines a plain run prints, whatever its rounds."""


class Progress(Protocol):
    """One run on the screen; entered before the first round and left after the last."""

    def __enter__(self) -> Progress: ...
    def __exit__(self, *error: object) -> None: ...
    def note(self, text: str) -> None:
        """Something worth saying besides the rounds. May be called from any thread."""
        ...

    def round(self, record: RoundRecord) -> None: ...
    def finish(self, result: RunResult) -> None:
        """The end of a run; waits for the output to be written, but not for long."""
        ...


def progress(kind: str, rounds: int, byzantine: Sequence[str], out: TextIO | None = None) -> Progress:
    """The view for `--format`; auto is rich on a terminal and plain elsewhere."""
    stream: TextIO = sys.stdout if out is None else out
    if kind == "json":
        return Json(output(stream, as_json), output(sys.stderr))
    if kind == "rich" or (kind == "auto" and stream.isatty()):
        from varangian.cli.views.live import Live

        return Live(rounds, byzantine, output(stream, None))
    return Plain(rounds, byzantine, output(stream))


def as_text(lost: int) -> str:
    """In the place of lines that were dropped."""
    return f"... {lost} lines were dropped, as nobody read this output\n"


def as_json(lost: int) -> str:
    """The same for programs."""
    return json.dumps({"dropped_lines": lost}) + "\n"


def output(stream: TextIO, gap: Callable[[int], str] | None = as_text) -> QueuedWriter:
    """A stream of this process, written to without waiting for it."""
    return writer(stream, "standard error" if stream is sys.stderr else "standard output", gap)


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
    """Some twenty lines for a log file, and a summary."""

    def __init__(self, rounds: int, byzantine: Sequence[str], out: QueuedWriter) -> None:
        self._rounds, self._byzantine, self._out = rounds, byzantine, out
        self._every = rounds / PLAIN_LINES
        self._next = 0.0
        self._tally = RunSummary()

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._out.close()

    def note(self, text: str) -> None:
        self._out.write(printable(text, NOTE) + "\n")

    def round(self, record: RoundRecord) -> None:
        self._tally.add(record)
        done = record.round + 1
        if record.skipped is not None:
            self.note(f"round {done}/{self._rounds}: no update: {record.skipped}")
        elif record.loss is not None and (done >= self._next or done == self._rounds):
            self._next = done + self._every
            self.note(f"round {done}/{self._rounds}  {self._state()}")

    def finish(self, result: RunResult) -> None:
        for name, value in summary(result, self._tally, self._byzantine):
            self.note(f"{name:<15} {value}")
        self._out.close()

    def _state(self) -> str:
        scores = [f"{name} {value}" for name, value in described(self._tally.scores)]
        return "  ".join([*scores, f"{self._tally.rate:.1f} rounds/s"])


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10_000 or value == 0 else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def described(scores: Scores | None) -> list[tuple[str, str]]:
    """What held-out data says of the model, as names and values; of an average one number."""
    if scores is None:
        return []
    found = [("loss", number(scores.loss))]
    if scores.accuracy is not None:
        found.append(("accuracy", percent(scores.accuracy)))
    others = scores.metrics or {}
    found += [(name, number(value)) for name, value in others.items() if not name.startswith("ema_")]
    if scores.ema_accuracy is not None:
        found.append(("average", percent(scores.ema_accuracy)))
    elif scores.ema_loss is not None:
        found.append(("average", number(scores.ema_loss)))
    return found


def summary(result: RunResult, tally: RunSummary, byzantine: Sequence[str]) -> list[tuple[str, str]]:
    """The end of a run, as names and values."""
    others = result.metrics or {}
    lines = [] if result.accuracy is None else [("accuracy", percent(result.accuracy))]
    lines += [
        ("loss", number(result.loss)),
        *((name, number(value)) for name, value in others.items() if not name.startswith("ema_")),
        *_average(result),
        ("rounds", _rounds(result, tally)),
        ("seconds", f"{result.seconds:.1f}"),
        ("digest", result.digest),
    ]
    mass = tally.share(byzantine) if byzantine else None
    if mass is not None:
        lines.append(("byzantine mass", f"{percent(mass)} of the weight, {len(byzantine)} workers"))
    for worker, times in sorted(tally.drops.items()):
        lines.append((f"dropped {worker}", f"{times} times, last: {tally.reasons[worker]}"))
    lines += _missing(tally)
    if any(tally.ages):
        mean = sum(age * count for age, count in tally.ages.items()) / tally.ages.total()
        lines.append(("ages", f"mean {mean:.1f} rounds, at most {max(tally.ages)}"))
    return [*lines, ("reason", result.reason), ("folder", str(result.folder or "-"))]


def _average(result: RunResult) -> list[tuple[str, str]]:
    """The scores of the average of the model, where there is one."""
    if result.ema_loss is None:
        return []
    parts = [] if result.ema_accuracy is None else [f"accuracy {percent(result.ema_accuracy)}"]
    parts.append(f"loss {number(result.ema_loss)}")
    others = result.metrics or {}
    parts += [f"{n.removeprefix('ema_')} {number(v)}" for n, v in others.items() if n.startswith("ema_")]
    return [("of the average", ", ".join(parts))]


def _missing(tally: RunSummary) -> list[tuple[str, str]]:
    """Who did not answer in time, one by one if they are few."""
    if len(tally.missing) <= FEW:
        return [(f"missing {worker}", f"{times} times") for worker, times in sorted(tally.missing.items())]
    (worker, times), *_ = tally.missing.most_common(1)
    total = f"{len(tally.missing)} workers, {tally.missing.total()} times in all"
    return [("missing", f"{total}, most of them {worker}, {times} times")]


def _rounds(result: RunResult, tally: RunSummary) -> str:
    skipped = f", {tally.skipped} of them without an update" if tally.skipped else ""
    return f"{result.rounds}{skipped}"
