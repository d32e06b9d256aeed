"""The trust timeline for a paper: workers down, rounds across, and signs where a worker had no part."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from varangian.cli.views.figure import RED
from varangian.experiments.results.analyses.trust import Trust
from varangian.experiments.results.figures.style import DOUBLE, shown

SIGNS: dict[str, str] = {
    "dropped": "x",
    "gated": "v",
    "missing": "o",
    "absent": "_",
    "declined": "^",
    "revoked": "s",
}
LINE, MOST = 0.13, 7.0
"""Height of a worker, and most height of the figure, in inches."""
NAMED = 50
"""Up to so many workers are named one by one."""
NOTHING = "#eeeeee"
LIGHTER = 1.4
"""The highest weight is lighter than black, on which no sign could be seen."""


def draw(timeline: Trust) -> Figure:
    """The figure of a trust timeline; attackers are marked by a star and a line apart from the others."""
    n, columns = timeline.weights.shape
    figure = Figure(figsize=(DOUBLE, min(LINE * n + 0.9, MOST)), layout="constrained")
    axis = figure.subplots()
    edges = np.array([*timeline.first, timeline.last[-1] + 1]) - 0.5 if columns else np.array([0.5, 1.5])
    weights = timeline.weights if columns else np.full((n, 1), np.nan)
    ramp = colormaps["Greys"].with_extremes(bad=NOTHING)
    highest = float(np.nanmax(weights)) if timeline.weighed else 1.0
    mesh = axis.pcolormesh(
        edges,
        np.arange(n + 1) - 0.5,
        np.ma.masked_invalid(weights),
        cmap=ramp,
        vmin=min(0.0, float(np.nanmin(weights))) if timeline.weighed else 0.0,
        vmax=LIGHTER * highest or 1.0,
        rasterized=True,
    )
    kinds = list(dict.fromkeys(mark.kind for found in timeline.marks.values() for mark in found))
    middle = (edges[:-1] + edges[1:]) / 2
    for kind in kinds:
        places = [at for at, found in timeline.marks.items() if any(mark.kind == kind for mark in found)]
        across, down = middle[[column for _, column in places]], [worker for worker, _ in places]
        axis.plot(
            across,
            down,
            SIGNS[kind],
            color=RED,
            ms=3,
            mew=0.7,
            mfc="none",
            linestyle="none",
            rasterized=len(places) > 2000,
        )
    apart = n - len(timeline.attackers)
    if timeline.attackers and apart:
        axis.axhline(apart - 0.5, color=RED, lw=0.8)
    axis.invert_yaxis()
    if n <= NAMED:
        names = [f"{shown(name)}{' *' if name in timeline.attackers else ''}" for name in timeline.workers]
        axis.set_yticks(range(n), names, fontsize=6)
    else:
        axis.set_ylabel("worker")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [
        Line2D([], [], color=RED, marker=SIGNS[kind], linestyle="none", mfc="none", ms=3, label=kind)
        for kind in kinds
    ]
    if timeline.attackers:
        handles.append(Line2D([], [], color=RED, lw=0.8, label="* attackers below"))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    if timeline.weighed:
        bar = figure.colorbar(mesh, ax=axis, pad=0.01, fraction=0.04)
        bar.set_label("weight")
        bar.outline.set_linewidth(0.4)
    else:
        axis.set_title("this rule gives no weights", fontsize=7)
    return figure
