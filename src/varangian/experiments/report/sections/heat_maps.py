"""Heat maps of worst cases under the names of ByzFL, as tables with a number in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varangian.experiments.report.rendering import Cell, Score, Section, Table, render
from varangian.experiments.results.analyses.heat_maps import HeatMap
from varangian.experiments.results.study import Study

SCORES = ("accuracy", "train_loss")
"""The scores that ByzFL draws; of a study without accuracy, its first score."""


def sections(study: Study) -> Iterator[Section]:
    """The heat maps, where settings vary besides rule, attack and seed."""
    if not study.by:
        return  # the table of worst cases has every number of a map of rules and attacks
    metrics = [name for name in SCORES if name in study.metrics] or [study.metric]
    blocks = [_block(metric, study.heat_maps(metric)) for metric in metrics]
    html = render("heat_maps.html", blocks=[block for block in blocks if block["maps"]])
    yield Section("heat-maps", "Heat maps", html)


def _block(metric: str, maps: Sequence[HeatMap]) -> dict[str, object]:
    values = [square.value for one in maps for line in one.squares for square in line if square]
    score = Score(metric)
    finite = [value for value in values if abs(value) != float("inf")]
    low, high = (0.0, 1.0) if score.percent else (min(finite, default=0.0), max(finite, default=1.0))
    return {
        "score": score,
        "maps": sorted(maps, key=lambda one: one.rule is not None),
        "low": low,
        "high": high,
        "table": _table(metric, maps),
    }


def _table(metric: str, maps: Sequence[HeatMap]) -> Table:
    rows: list[list[Cell]] = []
    for one in maps:
        fixed = ", ".join(f"{path} = {value}" for path, value in one.fixed.items())
        for y, line in zip(one.y, one.squares, strict=True):
            for x, square in zip(one.x, line, strict=True):
                if square:
                    rows.append(
                        [
                            one.name,
                            one.rule or "",
                            fixed,
                            one.x_title,
                            x,
                            one.y_title,
                            y,
                            square.value,
                            square.of,
                        ]
                    )
    columns = ("plot", "rule", "setting", "across", "value across", "upward", "value upward", "value", "of")
    return Table(f"heat-maps-{metric}-data", columns, rows, ("value",))
