"""Curves: scores over rounds, and over the length of the steps so far, with bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from varangian.experiments.report import specs
from varangian.experiments.report.rendering import NOTHING, Cell, Score, Section, Table, render, setting_of
from varangian.experiments.results.analyses.curves import Curve, Matched
from varangian.experiments.results.cases import better_of
from varangian.experiments.results.study import Study

POINTS, ALL_POINTS = 120, 30_000
"""Most points of a line, and of all lines of a score together; of more evaluations, as many are shown,
evenly spread."""
LEAST = 8
"""Points that a line has in any case."""
EDGE = 1.02
"""The axis of rounds ends so far beyond the last one that its point is whole."""
FEW = 15
"""Up to so many evaluations each has a point: a single one would be no line."""
TABLE_ROWS = 1500
"""A longer table of numbers is only in the file."""
LENGTH = (
    "The same score over the way that the parameters have gone: the sum of learning rate times norm of the "
    "update. A rule whose updates are shorter trains with a smaller learning rate in effect, and may look "
    "robust only because it has moved less. Compare lines at the same length."
)
MARGIN = 1.05
"""An axis is so much longer than its highest value."""
LINES = 8
"""Most lines that a panel shows at first; the others can be ticked."""
FIRST = ("accuracy", "loss", "train_loss")
BEYOND = 5.0
"""An axis ends at so many times the value that most lines stay below: a model that diverges is cut off."""


@dataclass(frozen=True)
class Legend:
    """A line of the legend."""

    name: str
    colour: str
    dash: str
    shown: bool = True
    """Whether it is shown at first."""


@dataclass(frozen=True)
class Panel:
    """One chart of several that share their data."""

    title: str
    where: dict[str, str]


@dataclass(frozen=True)
class Block:
    """The charts of one score."""

    id: str
    title: str
    caption: str
    spec: specs.Spec
    panels: tuple[Panel, ...]
    table: Table


@dataclass(frozen=True)
class Layout:
    """The meaning of a line and of a panel, which depends on what varies."""

    line: str
    lines: tuple[str, ...]
    panel: str | None
    panels: tuple[str, ...]
    groups: tuple[str, ...]
    """Settings to choose from; empty where lines or nothing stand for them."""

    @classmethod
    def of(cls, study: Study) -> Layout:
        groups = tuple(dict.fromkeys(setting_of(study, case.group) for case in study.cases))
        chosen = groups if len(groups) > 1 else ()
        if len(study.rules) > 1:
            several = len(study.attacks) > 1
            return cls("rule", study.rules, "attack" if several else None, study.attacks, chosen)
        if len(study.attacks) > 1 or not chosen:
            return cls("attack", study.attacks, None, (), chosen)
        return cls("setting", groups, None, (), ())


def sections(study: Study) -> Iterator[Section]:
    """The sections of all scores, and the view over the length of steps where rules are compared."""
    layout = Layout.of(study)
    shown = _shown_first(study, layout)
    own = [metric for metric in FIRST if metric in study.metrics]
    blocks = [_block(study, layout, metric) for metric in own or study.metrics[:1]]
    if any(block.table.rows for block in blocks):
        yield Section(
            "curves",
            "Curves over rounds",
            _html("curves", layout, blocks, _introduction(study, layout, shown), shown),
        )
    others = [metric for metric in study.metrics if metric not in own]
    blocks = [_block(study, layout, metric) for metric in others] if own else []
    if any(block.table.rows for block in blocks):
        yield Section("scores", "Other scores", _html("scores", layout, blocks, "", shown))
    if len(study.rules) > 1:
        yield from _by_length(study, layout, shown)


def _introduction(study: Study, layout: Layout, shown: Set[str]) -> str:
    seeds = len(study.varying.get("seed", ()))
    band = (
        f" Lines are means over {seeds} seeds, and bands go from the lowest seed to the highest."
        if seeds
        else ""
    )
    few = ""
    if len(shown) < len(layout.lines):
        few = (
            f" At first the {len(shown)} of {len(layout.lines)} rules with the best worst cases are shown."
        )
    return f"Scores after the rounds that were evaluated.{band}{few}"


def _by_length(study: Study, layout: Layout, shown: Set[str]) -> Iterator[Section]:
    found = study.curves_by_length()
    if not any(max(curve.x, default=0.0) > 0 for curve in found):
        return
    block = _block_of(study, layout, study.metric, found, "length", "length of all steps so far", "length")
    matched = study.matched()
    score = Score(study.metric)
    rows = [_matched_row(one, study, score) for one in matched]
    html = render(
        "curves.html",
        id="length",
        introduction=f"{LENGTH} {study.length_note}",
        legend=_legend(layout, shown),
        groups=layout.groups,
        line=layout.line,
        blocks=[block],
        limit=TABLE_ROWS,
        matched=rows,
        rules=study.rules,
        score=score,
        matched_table=_matched_table(study, matched),
    )
    yield Section("length", "At equal length of steps", html)


def _matched_row(one: Matched, study: Study, score: Score) -> dict[str, object]:
    cells: list[str] = []
    for rule in study.rules:
        mean, std = one.scores.get(rule, (None, None))
        text = score.text(mean)
        cells.append(text if std is None else f"{text} ± {score.text(std)}")
    ways = [f"{one.lengths[rule]:.3g}" if rule in one.lengths else NOTHING for rule in study.rules]
    return {
        "attack": "no attack" if one.attack == "none" else one.attack,
        "group": setting_of(study, one.group),
        "length": f"{one.length:.3g}",
        "cells": [*zip(cells, ways, strict=True)],
    }


def _matched_table(study: Study, matched: Sequence[Matched]) -> Table:
    rows = [
        [setting_of(study, one.group), one.attack, rule, one.length, *one.scores[rule], one.lengths[rule]]
        for one in matched
        for rule in one.scores
    ]
    columns = ("setting", "attack", "rule", "length", "mean", "std", "whole length")
    return Table("length-matched-data", columns, rows, columns[3:])


def _html(id: str, layout: Layout, blocks: Sequence[Block], introduction: str, shown: Set[str]) -> str:
    return render(
        "curves.html",
        id=id,
        introduction=introduction,
        legend=_legend(layout, shown),
        groups=layout.groups,
        line=layout.line,
        blocks=[block for block in blocks if block.table.rows],
        limit=TABLE_ROWS,
        matched=(),
        rules=(),
        score=None,
        matched_table=None,
    )


def _shown_first(study: Study, layout: Layout) -> Set[str]:
    """The lines that are shown at first: of many rules those with the best worst cases."""
    if len(layout.lines) <= LINES or layout.line != "rule":
        return {*layout.lines}
    worst = study.worst_cases()
    sign = 1 if worst.better == "higher" else -1
    scores: dict[str, list[float]] = {rule: [] for rule in layout.lines}
    for row in worst.rows:
        clean = None if row.clean is None else row.clean.mean
        value = clean if row.worst is None else row.worst
        if value is not None and math.isfinite(value):
            scores[row.rule].append(sign * value)
    means = {rule: sum(found) / len(found) for rule, found in scores.items() if found}
    return {*sorted(means, key=lambda rule: -means[rule])[:LINES]}


def _legend(layout: Layout, shown: Set[str]) -> list[Legend]:
    if len(layout.lines) < 2:
        return []
    styles = [specs.style(i) for i in range(len(layout.lines))]
    return [
        Legend(name, colour, " ".join(map(str, dash)), name in shown)
        for name, (colour, dash) in zip(layout.lines, styles, strict=True)
    ]


def _block(study: Study, layout: Layout, metric: str) -> Block:
    return _block_of(study, layout, metric, study.curves(metric), "round", "round", metric)


def _block_of(
    study: Study, layout: Layout, metric: str, found: Sequence[Curve], x: str, x_title: str, name: str
) -> Block:
    values = [value for curve in found for value in curve.mean if math.isfinite(value)]
    score = Score(metric)
    points = max(LEAST, min(POINTS, ALL_POINTS // max(1, len(found))))
    rows = [row for curve in found for row in _rows(study, curve, points)]
    y_domain = (
        (0.0, 1.0) if score.percent else _domain([value for c in found for value in c.mean[:1]], values)
    )
    ends = [curve.x[-1] for curve in found if curve.x]
    x_domain = _domain(ends, ends) if x == "length" else (0.0, EDGE * max(ends, default=1.0))
    cut = x_domain[1] < max(ends, default=0.0) or y_domain[1] < max(values, default=0.0)
    panels = [
        Panel("No attack" if attack == "none" else f"Under {attack}", {"attack": attack})
        for attack in layout.panels
        if any(curve.attack == attack for curve in found)
    ]
    thinned = any(len(curve.rounds) > points for curve in found)
    return Block(
        id=f"curves-{name}",
        title=score.heading,
        caption=(f"Of each line {points} evaluations are shown, evenly spread. " if thinned else "")
        + ("Lines of models that diverge leave the panel. " if cut else ""),
        spec=specs.curves(
            x,
            x_title,
            f"{metric.replace('_', ' ')}",
            layout.line,
            layout.lines,
            percent=score.percent,
            x_domain=x_domain,
            y_domain=y_domain,
            points=all(len(curve.rounds) <= FEW for curve in found),
            better=better_of(metric),
        ),
        panels=tuple(panels) if layout.panel else (Panel("", {}),),
        table=Table(
            f"curves-{name}-data",
            ("setting", "attack", "rule", "round", "length", "mean", "std", "lowest", "highest", "seeds")
            if x == "length"
            else ("setting", "attack", "rule", "round", "mean", "std", "lowest", "highest", "seeds"),
            [[row[0], row[1], row[2], row[3], *(row[4:] if x == "length" else row[5:])] for row in rows],
            ("round", "length", "mean", "std", "lowest", "highest", "seeds"),
        ),
    )


def _domain(usual: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """From the lowest value, or 0, to the highest that is not far beyond the usual ones."""
    finite = [value for value in values if math.isfinite(value)]
    known = sorted(value for value in usual if math.isfinite(value)) or [0.0]
    typical = known[len(known) // 2]
    within = [value for value in finite if typical <= 0 or value <= BEYOND * typical]
    return min(0.0, min(finite, default=0.0)), MARGIN * max(within, default=1.0)


def _rows(study: Study, curve: Curve, points: int) -> Iterator[list[Cell]]:
    """The points of a line, at most so many, the first and the last among them."""
    count = len(curve.rounds)
    shown: Iterable[int] = range(count)
    if count > points:
        shown = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
    group = setting_of(study, curve.group)
    for i in shown:
        yield [
            *(group, curve.attack, curve.rule, curve.rounds[i], curve.x[i]),
            *(curve.mean[i], curve.std[i], curve.low[i], curve.high[i], curve.seeds),
        ]
