"""Heat maps of worst cases over two settings, under the names that ByzFL has for them.

test_heatmap              of each rule: the worst of the attacks
aggregated_test_heatmap   of all rules: the best of these worst cases, and which rule has it
loss_heatmap              as the first, of the loss on training data

Without a second setting that varies, a map has one line; without any, it is of rules and attacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from varangian.experiments.results.cases import Better
from varangian.experiments.results.labels import NONE, natural
from varangian.experiments.results.worst_cases import Row, WorstCases

ACROSS = ("f", "byzantine.count", "workers")
"""Settings that go across, if they vary."""
UPWARD = "partition"
"""The setting that goes up, or the beginning of its path."""
TITLES = {"accuracy": "Test accuracy", "loss": "Test loss", "train_loss": "Training loss"}
NAMES = {"accuracy": "test_heatmap", "train_loss": "loss_heatmap", "loss": "test_loss_heatmap"}


@dataclass(frozen=True)
class Square:
    """One field of a heat map."""

    value: float
    of: str
    """The attack that is worst, or the rule that is best."""
    complete: bool
    """Whether all planned runs behind it have finished."""


@dataclass(frozen=True)
class HeatMap:
    """A number over two settings."""

    name: str
    """That of ByzFL's plot, good as the name of a file with `rule` after it."""
    title: str
    rule: str | None
    """None for the best of all rules, and for a map of rules and attacks."""
    metric: str
    better: Better
    when: str
    """The evaluation that counts, in words."""
    fixed: Mapping[str, str]
    """Other settings that vary, and their values here, by path."""
    x_title: str
    y_title: str
    """Empty where nothing goes up."""
    x: tuple[str, ...]
    y: tuple[str, ...]
    """From the bottom to the top."""
    squares: tuple[tuple[Square | None, ...], ...]
    """A line for each of `y`; None where there is no run."""


def heat_maps(worst: WorstCases) -> list[HeatMap]:
    """The heat maps of a table: of each rule, and of the best rule where there are several."""
    if not worst.by:
        return [_of_attacks(worst)] if worst.rows else []
    across = next((path for path in ACROSS if path in worst.by), worst.by[0])
    others = [path for path in worst.by if path != across]
    upward = next((path for path in others if path.startswith(UPWARD)), others[0] if others else None)
    places = [worst.by.index(path) for path in worst.by if path not in (across, upward)]
    found: list[HeatMap] = []
    for fixed in sorted(
        {tuple(row.group[i] for i in places) for row in worst.rows}, key=lambda v: [*map(natural, v)]
    ):
        rows = [row for row in worst.rows if tuple(row.group[i] for i in places) == fixed]
        rules = list(dict.fromkeys(row.rule for row in rows))
        beside = {worst.by[i]: value for i, value in zip(places, fixed, strict=True)}
        for rule in rules:
            one = [row for row in rows if row.rule == rule]
            found.append(_map(worst, one, rule, beside, across, upward, _axes(worst, rows, across, upward)))
        if len(rules) > 1:
            found.append(
                _map(worst, rows, None, beside, across, upward, _axes(worst, rows, across, upward))
            )
    return found


Axes = tuple[tuple[str, ...], tuple[str, ...]]


def _axes(worst: WorstCases, rows: Sequence[Row], across: str, upward: str | None) -> Axes:
    def values(path: str | None) -> tuple[str, ...]:
        if path is None:
            return ("",)
        return tuple(sorted({row.group[worst.by.index(path)] for row in rows}, key=natural))

    return values(across), values(upward)


def _map(
    worst: WorstCases,
    rows: Sequence[Row],
    rule: str | None,
    fixed: Mapping[str, str],
    across: str,
    upward: str | None,
    axes: Axes,
) -> HeatMap:
    squares: dict[tuple[str, str], Square] = {}
    for row in rows:
        place = _at(worst, row, across), "" if upward is None else _at(worst, row, upward)
        square = _square(row, rule)
        if square is not None and _better(square, squares.get(place), worst.better):
            squares[place] = square
    title, name = TITLES.get(worst.metric, worst.metric), NAMES.get(worst.metric, f"{worst.metric}_heatmap")
    return HeatMap(
        name=name if rule is not None else f"aggregated_{name}",
        title=f"{title}, {rule}" if rule is not None else f"Aggregated {title[:1].lower()}{title[1:]}",
        rule=rule,
        metric=worst.metric,
        better=worst.better,
        when=worst.when,
        fixed=fixed,
        x_title=across,
        y_title=upward or "",
        x=axes[0],
        y=axes[1],
        squares=tuple(tuple(squares.get((x, y)) for x in axes[0]) for y in axes[1]),
    )


def _at(worst: WorstCases, row: Row, path: str) -> str:
    return row.group[worst.by.index(path)]


def _square(row: Row, rule: str | None) -> Square | None:
    """The worst case of a row; its score without attackers where it has no other, as for f = 0."""
    if row.worst is not None:
        return Square(row.worst, (row.worst_attack or "") if rule is not None else row.rule, row.complete)
    if row.clean is None or row.clean.mean is None:
        return None
    return Square(row.clean.mean, NONE if rule is not None else row.rule, not row.clean.gaps)


def _better(square: Square, other: Square | None, better: Better) -> bool:
    if other is None:
        return True
    return square.value > other.value if better == "higher" else square.value < other.value


def _of_attacks(worst: WorstCases) -> HeatMap:
    """A map of rules and attacks, where no other setting varies."""
    clean = any(row.clean is not None for row in worst.rows)
    attacks = (NONE, *worst.attacks) if clean else worst.attacks
    lines: list[tuple[Square | None, ...]] = []
    for row in reversed(worst.rows):
        cells = [row.clean if attack == NONE else row.cells.get(attack) for attack in attacks]
        lines.append(
            tuple(
                None if cell is None or cell.mean is None else Square(cell.mean, attack, not cell.gaps)
                for cell, attack in zip(cells, attacks, strict=True)
            )
        )
    return HeatMap(
        name=NAMES.get(worst.metric, f"{worst.metric}_heatmap"),
        title=TITLES.get(worst.metric, worst.metric),
        rule=None,
        metric=worst.metric,
        better=worst.better,
        when=worst.when,
        fixed={},
        x_title="attack",
        y_title="rule",
        x=attacks,
        y=tuple(row.rule for row in reversed(worst.rows)),
        squares=tuple(lines),
    )
