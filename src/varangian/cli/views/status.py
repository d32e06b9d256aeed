"""The state of a run on a terminal: as plain lines, or as tables of rich."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from varangian.cli.views.terminal import NOTE, align, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

BARS = "▁▂▃▄▅▆▇█"
STRIP, LEAST_STRIP = 24, 6
"""Rounds whose weights are drawn at most, and at least, if at all."""
HEADS = ("worker", "state", "last outcome", "weight", "seen", "certificate", "reason")
WEIGHT, REASON = HEADS.index("weight"), HEADS.index("reason")
LONGEST_REASON = 16
"""Columns for which a reason finds room; a longer one is broken over lines where there is no more."""
SPARE = (HEADS.index("certificate"), HEADS.index("seen"))
"""What is left out first where there is little room."""
GAP = 2
"""Columns between two cells."""
FULL = 2.0
"""A weight of so many equal shares has the highest bar."""
NO_VECTOR = {"dropped": "x", "gated": "x", "revoked": "x", "missing": "-", "declined": "-"}
COLOURS = {
    "running": "green",
    "finished": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
}
WARM = "yellow"
BAD, DOUBTFUL = ("dropped", "revoked"), ("gated", "missing", "declined", "unused")


def plain_lines(state: Mapping[str, Any]) -> Iterator[str]:
    """Lines for pipes and logs."""
    title = f" {_text(state['title'])}" if state.get("title") else ""
    yield f"{_text(state['run'])}{title}: {_text(state['state'])}"
    yield f"{state['round']} of {state['rounds']} rounds; {_text(state['sentence'], NOTE)}"
    if figures := _figures(state):
        yield "   ".join(f"{name} {text}" for name, text in figures)
    for warning in state.get("warnings", ()):
        yield f"warning: {_text(warning, NOTE)}"
    if rows := [_cells(worker, state) for worker in state["workers"]]:
        kept = [place for place in range(len(HEADS)) if place == 0 or any(row[place] for row in rows)]
        yield ""
        lines = [[row[place] or "-" for place in kept] for row in [HEADS, *rows]]
        yield from (line for line in align(lines))
    if 0 < len(rows) < state["workers_total"]:
        yield f"{state['workers_total'] - len(rows)} more workers"
    if state.get("refusals"):
        counts = ", ".join(f"{_text(code)} {count}" for code, count in state["refusals"].items())
        yield f"refused: {counts}"


def rich_view(state: Mapping[str, Any]) -> RenderableType:
    """Tables and colours for a terminal."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    word = _text(state["state"])
    head = Text.assemble(
        (_text(state.get("title") or state["run"]), "bold"),
        "  ",
        (f"● {word}", COLOURS.get(word, "yellow")),
    )
    sentence = f"{state['round']} of {state['rounds']} rounds; {_text(state['sentence'], NOTE)}"
    parts: list[RenderableType] = [
        head,
        Text(_text(state["run"]), "dim") if state.get("title") else Text(""),
        # A bar by itself ends no line.
        Padding(ProgressBar(total=max(1, state["rounds"]), completed=state["round"], width=60), 0),
        Text(sentence),
    ]
    if figures := _figures(state):
        pairs = [((f"{name} ", "dim"), (f"{text}   ", "bold")) for name, text in figures]
        parts.append(Text.assemble(*(part for pair in pairs for part in pair)))
    parts += [Text(f"warning: {_text(warning, NOTE)}", "yellow") for warning in state.get("warnings", ())]
    if state["workers"]:
        parts += [Text(""), _WorkerTable(state)]
    if 0 < len(state["workers"]) < state["workers_total"]:
        parts.append(Text(f"{state['workers_total'] - len(state['workers'])} more workers", "dim"))
    if state.get("refusals"):
        counts = ", ".join(f"{_text(code)} {count}" for code, count in state["refusals"].items())
        parts.append(Text(f"refused: {counts}", "dim"))
    return Group(*parts)


@dataclass(frozen=True)
class _WorkerTable:
    """The workers as a table that fits into a terminal of any width.

    Where there is little room fewer of the last rounds are drawn, or none; then columns are left out, and
    at last cells are broken over lines.
    """

    state: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        workers = self.state["workers"]
        rows = [_cells(worker, self.state) for worker in workers]
        kept = [place for place in range(len(HEADS)) if place == 0 or any(row[place] for row in rows)]
        widths = {place: max(cell_len(row[place]) for row in [HEADS, *rows]) for place in kept}
        widths = {
            place: min(most, LONGEST_REASON) if place == REASON else most for place, most in widths.items()
        }
        for spare in SPARE:
            if spare in kept and sum(widths.values()) + GAP * (len(kept) - 1) > options.max_width:
                kept.remove(spare)
                del widths[spare]
        left = options.max_width - sum(widths.values()) - GAP * len(kept)
        strips = [_strip(worker, self.state, max(0, min(STRIP, left))) for worker in workers]
        drawn = left >= LEAST_STRIP and any(strips)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place in kept:
            broken = place == REASON or left < -GAP
            justify: Literal["left", "right"] = "right" if place == WEIGHT else "left"
            overflow: Literal["fold", "ellipsis"] = "fold" if broken else "ellipsis"
            table.add_column(HEADS[place], justify=justify, no_wrap=not broken, overflow=overflow)
        if drawn:
            table.add_column("last rounds"[: max(LEAST_STRIP, left)], no_wrap=True)
        for cells, worker, strip in zip(rows, workers, strips, strict=True):
            styles = {0: "bold", 1: _style(worker), 2: _style(worker)}
            shown = [Text(cells[place], styles.get(place, "")) for place in kept]
            table.add_row(*shown, *([Text(strip, "blue")] if drawn else []))
        yield table


def _style(worker: Mapping[str, Any]) -> str:
    if worker["outcome"] in BAD:
        return "red"
    return "yellow" if worker["outcome"] in DOUBTFUL or worker["state"] == "absent" else ""


def _figures(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Scores and figures by name."""
    found = [(_text(name), _score(name, value)) for name, value in state.get("scores", {}).items()]
    if state.get("present") is not None:
        found.append(("connected", f"{state['present']} of {state['workers_total']}"))
    if state.get("rate"):
        found.append(("rounds/s", f"{state['rate']:.3g}"))
    if state.get("elapsed") is not None:
        found.append(("time", _duration(state["elapsed"])))
    return found


def _cells(worker: Mapping[str, Any], state: Mapping[str, Any]) -> Sequence[str]:
    """The cells of a worker; empty where nothing is known."""
    outcome = _text(worker["outcome"])
    if outcome and worker.get("outcome_round") is not None:
        outcome = f"{outcome} in round {worker['outcome_round']}"
    answer = _text(worker.get("answer", ""))
    status = _text(worker.get("state", ""))
    weights = [cell for cell in worker.get("weights", ()) if isinstance(cell, int | float)]
    seen, ends = worker.get("seen_seconds"), worker.get("certificate_expires")
    name = _text(worker["name"]) + (" (attacks)" if worker.get("byzantine") else "")
    return (
        name,
        f"{status}, {answer}" if status and answer else status,
        outcome,
        _percent(sum(weights) / len(weights)) if weights else "",
        "" if seen is None else "now" if seen < 2 else f"{_duration(seen)} ago",
        "" if ends is None else time.strftime("%Y-%m-%d", time.gmtime(ends)),
        _text(worker.get("reason", "")),
    )


def _strip(worker: Mapping[str, Any], state: Mapping[str, Any], rounds: int) -> str:
    """The weights of the last rounds as bars."""
    cells = worker.get("weights", ())[-rounds:] if rounds else ()
    if not any(cell is not None for cell in cells):
        return ""
    equal = 1 / max(1, sum(bool(other.get("weights")) for other in state["workers"]))
    return "".join(_bar(cell, equal) for cell in cells)


def _bar(cell: Any, equal: float) -> str:
    if cell is None:
        return " "
    if isinstance(cell, str):
        return NO_VECTOR.get(cell, "-")
    share = max(0.0, cell / equal / FULL)
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


def _percent(share: float) -> str:
    return f"{0.0 if abs(share) < 0.0005 else 100 * share:.1f} %"


def _score(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def _text(value: Any, most: int = 200) -> str:
    return printable(str(value), most)
