"""The bar chart of the wire benchmark. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varangian.bench.wire.report import Report, Setting
from varangian.bench.wire.ways.catalogue import GRPC
from varangian.cli.views.figure import BLUE, ORANGE, PINK, SKY, save

COLOURS = {
    "measure": "#000000",
    "ceiling": "#999999",
    "naive": ORANGE,
    "ours": BLUE,
    "chunks": SKY,
    "peer": PINK,
}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
"""The box under a number, so that no line crosses it."""
GROUPS = {
    "measure": "raw TCP",
    "ceiling": "raw bytes, no checks: gRPC, TLS",
    "naive": "gRPC as mostly used",
    "ours": "Varangian",
    "chunks": "Varangian, all over gRPC",
    "peer": "other systems",
}


def bars(report: Report, path: Path) -> None:
    """One panel for each setting, one bar for each way; written as PNG."""
    # One bar alone would be raw TCP, where no other way had room in memory.
    shown = [setting for setting in report.found if _measured(setting) > 1] or list(report.found)
    count = len(shown)
    columns = min(count, 3)
    lines = -(-count // columns)
    longest = max(map(_measured, shown))
    size = (4.3 * columns, (0.9 + 0.27 * longest) * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for i, axis in enumerate(panels):
        if i < count:
            _panel(axis, shown[i])
        else:
            axis.set_axis_off()
    kinds = dict.fromkeys(line.kind for setting in report.found for line in setting.lines)
    handles = [Axes.bar(panels[0], 0, 0, color=COLOURS[kind], label=GROUPS[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    cores = report.machine["cores"]
    where = f"{report.machine['cpu']}, {cores} cores, server and workers on it, loopback"
    figure.suptitle(f"Vectors between workers and server: {where}", fontsize=10)
    save(figure, path)


def _measured(setting: Setting) -> int:
    return sum(line.speed is not None for line in setting.lines)


def _panel(axis: Axes, setting: Setting) -> None:
    lines = [(line, line.speed) for line in setting.lines if line.speed]
    lines.reverse()
    places = range(len(lines))
    axis.barh(places, [speed.x_tcp for _, speed in lines], color=[COLOURS[line.kind] for line, _ in lines])
    axis.set_yticks(places, [line.title for line, _ in lines], fontsize=7)
    for place, (_, speed) in zip(places, lines, strict=True):
        text = f"{speed.x_tcp:.2f}  ({speed.gigabytes_per_second:.1f} GB/s)"
        at = (speed.x_tcp, place)
        axis.annotate(
            text, at, (4, 0), textcoords="offset points", va="center", fontsize=7, bbox=PAPER, zorder=3
        )
    for line, speed in lines:
        if line.name == GRPC:
            axis.axvline(speed.x_tcp, color=COLOURS["ceiling"], lw=0.8, ls="--", zorder=0)
    axis.set_xlim(0, 1.7 * max(speed.x_tcp for _, speed in lines))
    size = f"{setting.size / 1e6:g} MB"
    title = (
        f"{setting.workers} workers at once, {size} each" if setting.workers > 1 else f"1 worker, {size}"
    )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("speed, as a ratio to raw TCP", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
