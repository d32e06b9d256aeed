"""Heat maps for a paper: a number in each square, in black or white, whichever can be read on it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from varangian.experiments.results.analyses.heat_maps import HeatMap
from varangian.experiments.results.figures.curves import axis_name
from varangian.experiments.results.figures.style import BLACK, COLUMN, DOUBLE, GREY, RAMP, WHITE, shown
from varangian.experiments.results.tables import is_share, score_text

SQUARE = 0.3
"""Height of a square, in inches."""
MANY = 7
"""From so many squares across, a map is as wide as two columns."""
LONG = 4
"""Names across of more characters stand aslant."""
LETTERS = 34
"""Letters beside each other on the squares for which one column is wide enough."""
WIDE = 10
"""Numbers that are so many times as large as others have colours on a logarithmic scale."""
LIGHT = 0.45
"""Brightness from which the number on a square is black."""


def draw(shown_map: HeatMap) -> Figure:
    """The figure of a heat map. A square whose runs are not all there has its number in brackets."""
    squares = shown_map.squares
    scale = 100 if is_share(shown_map.metric) else 1
    values = np.array(
        [[math.nan if one is None else scale * one.value for one in line] for line in squares], dtype=float
    )
    finite = values[np.isfinite(values)]
    low, high = (
        (0, 100) if scale == 100 else (float(finite.min()), float(finite.max())) if len(finite) else (0, 1)
    )
    aslant = any(len(name) > LONG for name in shown_map.x)
    names = 0.5 if aslant else 0.2
    named = shown_map.rule is None and shown_map.y_title != "rule"
    rules = {one.of for line in squares for one in line if one is not None} if named else set[str]()
    common = _common_mixings(rules)
    longest = max((len(part) for rule in rules for part in rule.removeprefix(common).split("+")), default=0)
    width = DOUBLE if len(shown_map.x) > MANY or longest * len(shown_map.x) > LETTERS else COLUMN
    height = (1.5 if named else 1) * SQUARE * len(shown_map.y)
    figure = Figure(figsize=(width, height + names + 0.65), layout="constrained")
    axis = figure.subplots()
    wide = scale == 1 and low > 0 and high > WIDE * low
    norm = LogNorm(low, high) if wide else Normalize(low, high if high > low else low + 1)
    ramp = colormaps[RAMP if shown_map.better == "higher" else f"{RAMP}_r"].with_extremes(bad=GREY)
    clipped = np.clip(values, low, high)
    masked = np.ma.masked_invalid(clipped)
    image = axis.imshow(masked, cmap=ramp, norm=norm, aspect="auto", origin="lower")
    for j, line in enumerate(squares):
        for i, square in enumerate(line):
            if square is None:
                axis.text(i, j, "-", ha="center", va="center", color=WHITE)
                continue
            text = _number(square.value, shown_map.metric)
            text = text if square.complete else f"({text})"
            if named:
                text += f"\n{shown(square.of.removeprefix(common))}".replace("+", "+\n")
            colour = ramp(image.norm(clipped[j, i]))
            bright = float(np.dot(colour[:3], (0.299, 0.587, 0.114)))
            axis.text(
                *(i, j, text),
                ha="center",
                va="center",
                fontsize=6.5,
                linespacing=0.95,
                color=BLACK if bright > LIGHT else WHITE,
            )
    axis.set_xticks(range(len(shown_map.x)), [shown(name) for name in shown_map.x])
    axis.set_yticks(range(len(shown_map.y)), [shown(name) for name in shown_map.y])
    if aslant:
        axis.tick_params(axis="x", labelrotation=30)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axis.tick_params(length=0)
    axis.set_xlabel(shown(shown_map.x_title))
    if shown_map.y_title:
        axis.set_ylabel(shown(shown_map.y_title))
    else:
        axis.set_yticks([])
    beside = ", ".join(f"{path} {value}" for path, value in shown_map.fixed.items())
    beside = ", ".join(filter(None, [beside, f"all after {common.rstrip('+')}" if common else ""]))
    axis.set_title(shown(f"{shown_map.title}{f' ({beside})' if beside else ''}"))
    bar = figure.colorbar(image, ax=axis, pad=0.02, fraction=0.06)
    bar.set_label(f"{axis_name(shown_map.metric)}\n{shown_map.when}")
    bar.outline.set_linewidth(0.4)
    return figure


def _number(value: float, metric: str) -> str:
    """A score in few characters: a square is small."""
    if is_share(metric) or not math.isfinite(value):
        return score_text(value, metric)
    return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _common_mixings(rules: Iterable[str]) -> str:
    """The mixings with which all these rules begin, with the plus after them."""
    parts = [rule.split("+")[:-1] for rule in rules]
    common = list[str]()
    for same in zip(*parts, strict=False):
        if len(set(same)) > 1:
            break
        common.append(same[0])
    return "".join(f"{part}+" for part in common)
