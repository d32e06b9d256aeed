"""The state of a run on a terminal: as plain lines, or as tables of rich."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from varangian.cli.views.terminal import NOTE, align, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
STRIP = 24
"""Rounds whose weights are drawn."""
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
        heads = ("worker", "state", "last outcome", "weight", "seen", "certificate", "reason")
        kept = [place for place in range(len(heads)) if place == 0 or any(row[place] for row in rows)]
        yield ""
        lines = [[row[place] or "-" for place in kept] for row in [heads, *rows]]
        yield from (line for line in align(lines))
    if 0 < len(rows) < state["workers_total"]:
        yield f"{state['workers_total'] - len(rows)} more workers"
    if state.get("refusals"):
        counts = ", ".join(f"{_text(code)} {count}" for code, count in state["refusals"].items())
        yield f"refused: {counts}"


def rich_view(state: Mapping[str, Any]) -> RenderableType:
    """Tables and colours for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
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
        ProgressBar(total=max(1, state["rounds"]), completed=state["round"], width=60),
        Text(sentence),
    ]
    if figures := _figures(state):
        pairs = [((f"{name} ", "dim"), (f"{text}   ", "bold")) for name, text in figures]
        parts.append(Text.assemble(*(part for pair in pairs for part in pair)))
    parts += [Text(f"warning: {_text(warning, NOTE)}", "yellow") for warning in state.get("warnings", ())]
    rows = [(_cells(worker, state), worker) for worker in state["workers"]]
    if rows:
        table = Table(box=None, pad_edge=False, header_style="dim")
        heads = ("worker", "state", "last outcome", "weight", "seen", "certificate", "reason")
        kept = [place for place in range(len(heads)) if place == 0 or any(row[place] for row, _ in rows)]
        strips = [_strip(worker, state) for _, worker in rows]
        for place in kept:
            table.add_column(heads[place], justify="right" if place == 3 else "left", no_wrap=place < 6)
        if any(strips):
            table.add_column("last rounds", no_wrap=True)
        for (cells, worker), strip in zip(rows, strips, strict=True):
            styles = {0: "bold", 1: _style(worker), 2: _style(worker)}
            shown = [Text(cells[place], styles.get(place, "")) for place in kept]
            table.add_row(*shown, *([Text(strip, "blue")] if any(strips) else []))
        parts += [Text(""), table]
    if 0 < len(rows) < state["workers_total"]:
        parts.append(Text(f"{state['workers_total'] - len(rows)} more workers", "dim"))
    if state.get("refusals"):
        counts = ", ".join(f"{_text(code)} {count}" for code, count in state["refusals"].items())
        parts.append(Text(f"refused: {counts}", "dim"))
    return Group(*parts)


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


def _strip(worker: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The weights of the last rounds as bars."""
    cells = worker.get("weights", ())[-STRIP:]
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
