"""The bar chart of the aggregator benchmark. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from varangian.bench.aggregators.report import Report
from varangian.cli.views.figure import BLUE, GREEN, ORANGE, PINK, SKY, save

COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY)
"""Of the libraries; ours is the first."""


def bars(report: Report, path: Path) -> None:
    """One panel for each size, one bar for each rule, on a logarithmic scale; written as PNG."""
    libraries = list(dict.fromkeys(line.library for size in report.sizes for line in size.lines))
    colours = {library: COLOURS[i % len(COLOURS)] for i, library in enumerate(libraries)}
    longest = max(len(size.lines) for size in report.sizes)
    figure = Figure(figsize=(5.2 * len(report.sizes), 1.6 + 0.19 * longest), layout="constrained")
    panels = figure.subplots(1, len(report.sizes), squeeze=False)[0]
    for axis, size in zip(panels, report.sizes, strict=True):
        timed = [(line, line.timing) for line in size.lines if line.timing]
        timed.sort(key=lambda entry: entry[1].wall_x_mean, reverse=True)
        axis.barh(
            [line.title for line, _ in timed],
            [timing.wall_x_mean for _, timing in timed],
            color=[colours[line.library] for line, _ in timed],
        )
        axis.axvline(1, color="black", lw=0.8)
        axis.set_xscale("log")
        axis.margins(y=0.01)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(f"{size.title}, f = {size.f}", fontsize=10)
        axis.set_xlabel("times rows.mean(0)")
        axis.grid(axis="x", alpha=0.3)
    threads = report.machine["threads"]
    figure.suptitle(f"{report.machine['cpu']}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    save(figure, path)
