"""Charts as specifications of Vega-Lite, without their data.

Colours differ in brightness, and every line has a pattern of its own, so that a print without colours can
be read. Points are no part of what a screen reader is told: it has the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from varangian.experiments.results.cases import Better

Spec: TypeAlias = dict[str, Any]
Domain: TypeAlias = tuple[float, float]

COLOURS = ("#0072b2", "#d55e00", "#1b1f24", "#008f67", "#b0509a", "#9a6700", "#3b8bc9", "#6e40c9")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (14, 4), (5, 2, 1, 2, 1, 2), (11, 2, 2, 2, 2, 2), (1, 3))
BLUES = ["#f7fbff", "#cfe1f2", "#93c3df", "#4b97c9", "#1864aa", "#08306b"]
SIGNED = ["#8a3b00", "#e0904a", "#f7f7f7", "#4b97c9", "#08306b"]
"""From negative to positive; a cell with a negative weight has a minus sign, too."""
KINDS = {
    "dropped": ("cross", "#b3261e"),
    "gated": ("triangle-down", "#b0509a"),
    "declined": ("triangle-up", "#9a6700"),
    "missing": ("circle", "#57606a"),
    "absent": ("diamond", "#8c959f"),
    "revoked": ("square", "#6e40c9"),
}
"""The shape and colour of the mark of each kind of absence."""
FEW_LINES = 4
"""Bands of more lines are fainter: many of them would hide what is below."""
TINY = 1e-6
"""Ends a scale of weights where there are none."""
FURNITURE = 110
"""Pixels of the legend and the axis of a timeline."""
CONFIG: Spec = {
    "font": "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e4e8ec"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "view": {"stroke": "#d0d7de"},
    "scale": {"invalid": {"color": {"value": "#eaeef2"}}},
    "background": "white",
}


def style(index: int) -> tuple[str, tuple[int, ...]]:
    """The colour and pattern of a line; both repeat, but not together before long."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def curves(
    x: str,
    x_title: str,
    y_title: str,
    line: str,
    names: Sequence[str],
    *,
    percent: bool,
    x_domain: Domain,
    y_domain: Domain,
    points: bool,
    better: Better,
) -> Spec:
    """Lines with bands over a horizontal axis.

    Args:
        x: the column of the horizontal axis.
        x_title: its title.
        y_title: the title of the vertical axis.
        line: the column that names the lines.
        names: all of them, in order.
        percent: whether the values are shares, from 0 to 1.
        x_domain: from where to where the horizontal axis goes; what is beyond is cut off.
        y_domain: the same of the vertical one.
        points: whether each evaluation has a point on its line.
        better: the direction of the values, for an axis that is fitted to the lines.
    """
    styles = [style(i) for i in range(len(names))]
    domain = list(names)
    colour = {"field": line, "scale": {"domain": domain, "range": [c for c, _ in styles]}, "legend": None}
    dash = {
        "field": line,
        "scale": {"domain": domain, "range": [list(d) for _, d in styles]},
        "legend": None,
    }
    ends = {"domainMin": {"expr": "low"}, "domainMax": {"expr": "high"}}
    scale: Spec = {**ends, "nice": False, "zero": False}
    axis: Spec = {"format": "%" if percent else ".3~g", "tickCount": 5}
    shown = ".1%" if percent else ".4g"
    faint = 0.16 if len(names) <= FEW_LINES else 0.06
    y = {"field": "mean", "type": "quantitative", "title": y_title, "scale": scale, "axis": axis}
    number = {"type": "quantitative", "format": shown}
    near = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": 210,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": CONFIG,
        "params": [{"name": "low", "value": y_domain[0]}, {"name": "high", "value": y_domain[1]}],
        "usermeta": {"line": line, "x": x, "whole": list(y_domain), "higher": better == "higher"},
        "encoding": {
            "x": {
                "field": x,
                "type": "quantitative",
                "title": x_title,
                "scale": {"domain": list(x_domain), "nice": False},
                "axis": {"tickCount": 6, "format": ".6~g"},
            },
            "color": {"type": "nominal", **colour},
        },
        "layer": [
            {
                "mark": {"type": "area", "opacity": faint, "aria": False, "clip": True},
                "encoding": {
                    "y": {**y, "field": "lowest"},
                    "y2": {"field": "highest"},
                },
            },
            {
                "mark": {
                    "type": "line",
                    "strokeWidth": 2,
                    "aria": False,
                    "clip": True,
                    "point": {"size": 28} if points else False,
                },
                "encoding": {
                    "y": y,
                    "strokeDash": {"type": "nominal", **dash},
                },
            },
            {
                "params": [{"name": "near", "select": near}],
                "mark": {"type": "point", "filled": True, "size": 55, "aria": False, "clip": True},
                "encoding": {
                    "y": y,
                    "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
                    "tooltip": [
                        {"field": line, "type": "nominal", "title": line},
                        {"field": x, "type": "quantitative", "title": x_title, "format": ".6~g"},
                        {**number, "field": "mean", "title": "mean"},
                        {**number, "field": "lowest", "title": "lowest seed"},
                        {**number, "field": "highest", "title": "highest seed"},
                        {"field": "seeds", "type": "quantitative", "title": "seeds"},
                    ],
                },
            },
        ],
    }


def timeline(workers: int, kinds: Sequence[str], *, signed: bool) -> Spec:
    """Weights of workers over rounds as a heat map, with a mark where a worker had no part.

    Args:
        workers: their number.
        kinds: the kinds of marks that there are.
        signed: whether some weights are negative.
    """
    step = 18 if workers <= 40 else 12 if workers <= 100 else 6
    edges = [
        {"calculate": "datum['first round'] - 0.5", "as": "from"},
        {"calculate": "datum['last round'] + 0.5", "as": "to"},
        {"calculate": "(datum['first round'] + datum['last round']) / 2", "as": "middle"},
        {"calculate": "datum.worker + (datum.attacks === 'yes' ? ' ▲' : '')", "as": "name"},
    ]
    kinds = [kind for kind in KINDS if kind in kinds]
    tooltip = [
        {"field": "worker", "type": "nominal"},
        {"field": "first round", "type": "quantitative"},
        {"field": "last round", "type": "quantitative"},
        {"field": "weight", "type": "quantitative", "format": ".4f"},
        {"field": "left out", "type": "nominal"},
        {"field": "reason", "type": "nominal"},
    ]
    y = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"labelLimit": 160, "labelOverlap": True, "ticks": False},
    }
    marks: Spec = {
        "transform": [{"filter": "datum['left out'] !== ''"}],
        "mark": {"type": "point", "filled": True, "size": 42, "aria": False, "opacity": 1},
        "encoding": {
            "x": {"field": "middle", "type": "quantitative"},
            "y": y,
            "shape": {
                "field": "left out",
                "type": "nominal",
                "title": "left out",
                "scale": {"domain": kinds, "range": [KINDS[kind][0] for kind in kinds]},
                "legend": {"orient": "top"},
            },
            "fill": {
                "field": "left out",
                "type": "nominal",
                "title": "left out",
                "scale": {"domain": kinds, "range": [KINDS[kind][1] for kind in kinds]},
                "legend": {"orient": "top"},
            },
            "tooltip": tooltip,
        },
    }
    least, largest = (f"(extent(pluck(data('rows'), 'weight'))[{i}] || 0)" for i in (0, 1))
    end = f"max({TINY}, -{least}, {largest})"
    scale: Spec = {
        "range": SIGNED if signed else BLUES,
        "domainMin": {"expr": f"-{end}"} if signed else 0,
        "domainMax": {"expr": end},
    }
    minus: Spec = {
        "transform": [{"filter": "isNumber(datum.weight) && datum.weight < 0"}],
        "mark": {"type": "text", "text": "\N{MINUS SIGN}", "fontSize": 9, "aria": False},
        "encoding": {
            "x": {"field": "middle", "type": "quantitative"},
            "y": y,
            "color": {"value": "#1b1f24"},
        },
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": step * workers + FURNITURE,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        "config": CONFIG,
        "transform": edges,
        "layer": [
            {
                "mark": {"type": "rect", "aria": False, "invalid": "show"},
                "encoding": {
                    "x": {
                        "field": "from",
                        "type": "quantitative",
                        "title": "round",
                        "scale": {"zero": False, "nice": False},
                        "axis": {"tickCount": 10, "grid": False, "tickMinStep": 1},
                    },
                    "x2": {"field": "to"},
                    "y": y,
                    "color": {
                        "field": "weight",
                        "type": "quantitative",
                        "title": "weight",
                        "scale": scale,
                        "legend": {"orient": "top", "gradientLength": 160, "tickCount": 3},
                    },
                    "tooltip": tooltip,
                },
            },
            *([minus] if signed else []),
            *([marks] if kinds else []),
        ],
    }
