"""Curves for a paper: a panel for each attack, a line with a band over seeds for each rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from varangian.experiments.results.analyses.curves import Curve
from varangian.experiments.results.figures.style import COLUMN, DOUBLE, line_style, shown
from varangian.experiments.results.labels import NONE
from varangian.experiments.results.tables import is_share, score_text

ACROSS, HEIGHT = 3, 1.75
"""Most panels beside each other, and the height of each in inches."""
MARKED = 8
"""Markers on a line, about."""
OFF, FAR = 2.5, 30
"""Ways and losses that are so many times the median leave the panel, as those of a model that diverges."""
FALLEN = 0.5
"""Accuracies below so much of the median are not what the axis is made for."""
LEGEND_LINE = 0.16
"""Height of a line of the legend, in inches."""


def draw(
    curves: Sequence[Curve], metric: str, rules: Sequence[str], *, x: str = "round", title: str = ""
) -> Figure:
    """The figure of curves of one group.

    Args:
        curves: of it.
        metric: their score.
        rules: all rules of the study: a rule has the same line in all figures.
        x: what goes across.
        title: over all panels; empty for none.
    """
    attacks = list(dict.fromkeys(curve.attack for curve in sorted(curves, key=lambda c: c.attack != NONE)))
    columns = 2 if len(attacks) == 4 else min(len(attacks), ACROSS)
    lines = math.ceil(len(attacks) / columns)
    present = [rule for rule in rules if any(curve.rule == rule for curve in curves)]
    width = COLUMN if columns == 1 else DOUBLE
    per_line = max(1, int(width / (0.45 + 0.055 * max(len(shown(rule)) for rule in present))))
    legend = math.ceil(len(present) / per_line) * LEGEND_LINE + (0.15 if title else 0)
    figure = Figure(figsize=(width, HEIGHT * lines + legend + 0.25), layout="constrained")
    axes: list[Axes] = [*figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()]
    for axis, attack in zip(axes, attacks, strict=False):
        for curve in (one for one in curves if one.attack == attack):
            _line(axis, curve, line_style(rules.index(curve.rule)), is_share(metric))
        axis.set_title("no attack" if attack == NONE else shown(attack))
        axis.grid(True)
        ends = [curve.x[-1] for curve in curves if curve.attack == attack]
        axis.set_xlim(0, min(1.05 * max(ends), OFF * median(ends)) or 1)
        if x == "round":
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    _limits(axes, attacks, curves, metric)
    for i, axis in enumerate(axes):
        if i >= len(attacks):
            axis.set_axis_off()
        elif i + columns >= len(attacks):
            axis.set_xlabel(x)
            axis.tick_params(labelbottom=True)
        if i < len(attacks) and i % columns == 0:
            axis.set_ylabel(axis_name(metric))
    handles = [Line2D([], [], **line_style(rules.index(rule))) for rule in present]
    figure.legend(
        handles,
        [shown(rule) for rule in present],
        loc="outside lower center",
        ncols=per_line,
        frameon=False,
    )
    if title:
        figure.suptitle(shown(title), fontsize=8)
    return figure


def axis_name(metric: str) -> str:
    """The name of a score beside an axis."""
    names = {"accuracy": "test accuracy, %", "loss": "test loss", "train_loss": "training loss"}
    return names.get(metric, shown(metric.replace("_", " ") + (", %" if is_share(metric) else "")))


def _line(axis: Axes, curve: Curve, style: Mapping[str, Any], share: bool) -> None:
    scale = 100 if share else 1
    mean = [scale * value for value in curve.mean]
    every = max(1, len(curve.x) // MARKED)
    axis.plot(curve.x, mean, **style, markevery=every)
    if curve.seeds > 1:
        low = [scale * (value - std) for value, std in zip(curve.mean, curve.std, strict=True)]
        high = [scale * (value + std) for value, std in zip(curve.mean, curve.std, strict=True)]
        axis.fill_between(curve.x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _limits(axes: Sequence[Axes], attacks: Sequence[str], curves: Sequence[Curve], metric: str) -> None:
    """Fit the axis to the lines that do not lie far from the others; those are named in their panels.

    A loss has a logarithmic scale where it covers more than ten times.
    """
    if is_share(metric):
        usual = median(curve.mean[-1] for curve in curves)
        kept = [curve for curve in curves if curve.mean[-1] >= FALLEN * usual]
        low = min(m - s for curve in kept for m, s in zip(curve.mean, curve.std, strict=True))
        low = max(0, math.floor(20 * low) / 20)
        axes[0].set_ylim(100 * low, 100)
        lost, place = [curve for curve in curves if max(curve.mean) < low], 0.05
    else:
        values = [value for curve in curves for value in curve.mean if math.isfinite(value)]
        if not values or min(values) <= 0 or max(values) <= 10 * min(values):
            return
        high = min(max(values), FAR * median(values))
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].set_ylim(0.8 * min(values), 1.25 * high)
        lost, place = [curve for curve in curves if not min(curve.mean) <= high], 0.95
    for axis, attack in zip(axes, attacks, strict=False):
        ends = [(curve.rule, curve.mean[-1]) for curve in lost if curve.attack == attack]
        share = is_share(metric)
        text = "\n".join(
            f"{shown(rule)}: {score_text(end, metric)}{' %' if share else ''}"
            if math.isfinite(end)
            else f"{shown(rule)} diverges"
            for rule, end in ends
        )
        sides: dict[str, Any] = {"ha": "right", "va": "bottom" if share else "top"}
        axis.text(0.97, place, text, transform=axis.transAxes, fontsize=7, **sides)
