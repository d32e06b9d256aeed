"""Heat maps of worst cases over two settings, under the names that ByzFL has for them.

test_heatmap              of each rule: the worst of the attacks
aggregated_test_heatmap   of all rules: the best of these worst cases, and which rule has it
loss_heatmap              as the first, of the loss on training data

Without a second setting that varies, a map has one line; without any, it is of rules and attacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from varangian.experiments.results.analyses.worst_cases import Row, WorstCases
from varangian.experiments.results.cases import Better
from varangian.experiments.results.labels import NONE, natural

COUNT = "byzantine.count"
ACROSS = (COUNT, "f", "workers")
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
    places = [worst.by.index(path) for path in others if path != upward]
    found: list[HeatMap] = []
    for fixed in sorted(
        {tuple(row.group[i] for i in places) for row in worst.rows}, key=lambda v: [*map(natural, v)]
    ):
        rows = [row for row in worst.rows if tuple(row.group[i] for i in places) == fixed]
        rules = list(dict.fromkeys(row.rule for row in rows))
        maker = _Maker(
            worst,
            across,
            upward,
            rows,
            {worst.by[i]: value for i, value in zip(places, fixed, strict=True)},
        )
        found += [maker.map(rule) for rule in rules]
        if len(rules) > 1:
            found.append(maker.map(None))
    return found


@dataclass(frozen=True)
class _Maker:
    """The making of the maps of some rows, over the same two settings."""

    worst: WorstCases
    across: str
    upward: str | None
    rows: Sequence[Row]
    fixed: Mapping[str, str]

    def map(self, rule: str | None) -> HeatMap:
        """The map of a rule; None is the best of all."""
        worst = self.worst
        squares: dict[tuple[str, str], Square] = {}
        for row in self.rows:
            for place, square in self._squares(row):
                if rule is None:
                    shown = replace(square, of=row.rule)
                    if _better(shown, squares.get(place), worst.better):
                        squares[place] = shown
                elif row.rule == rule:
                    squares[place] = square
        places = [place for row in self.rows for place, _ in self._squares(row)]
        x, y = (tuple(sorted({place[i] for place in places}, key=natural)) for i in (0, 1))
        title = TITLES.get(worst.metric, worst.metric)
        name = NAMES.get(worst.metric, f"{worst.metric}_heatmap")
        return HeatMap(
            name=name if rule is not None else f"aggregated_{name}",
            title=f"{title}, {rule}" if rule is not None else f"Aggregated {title[:1].lower()}{title[1:]}",
            rule=rule,
            metric=worst.metric,
            better=worst.better,
            when=worst.when,
            fixed=self.fixed,
            x_title=self.across,
            y_title=self.upward or "",
            x=x,
            y=y,
            squares=tuple(tuple(squares.get((across, up)) for across in x) for up in y),
        )

    def _squares(self, row: Row) -> Iterator[tuple[tuple[str, str], Square]]:
        """The worst case of a row in its place, and its score without attackers where that has one."""
        by = self.worst.by
        across, up = (
            row.group[by.index(self.across)],
            row.group[by.index(self.upward)] if self.upward else "",
        )
        if row.worst is not None:
            yield (across, up), Square(row.worst, row.worst_attack or "", row.complete)
        if row.clean is None or row.clean.mean is None:
            return
        clean = Square(row.clean.mean, NONE, not row.clean.gaps)
        if self.across == COUNT:
            yield ("0", up), clean
        elif row.worst is None:  # as for f = 0
            yield (across, up), clean


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
