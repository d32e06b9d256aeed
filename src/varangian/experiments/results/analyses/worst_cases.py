"""Worst cases: a rule is as good as its score under the attack that hurts it most.

The attacker chooses after the rule, so the number by which the field compares rules is the minimum over
attacks of the mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from varangian.experiments.results.cases import At, Better, Case, Gap, better_of, mean_and_std
from varangian.experiments.results.labels import NONE, natural


@dataclass(frozen=True)
class Cell:
    """A rule under one attack, over seeds."""

    values: tuple[float, ...]
    """One of each run that has a score."""
    seeds: tuple[str, ...]
    """Of these, in the same order."""
    gaps: tuple[Gap, ...]
    """Runs without a result; a cell may have no others."""
    early: tuple[Gap, ...]
    """Of those with a score, runs that ended before their last round."""
    mean: float | None
    std: float | None
    """Of a sample; None of a single run."""

    @property
    def planned(self) -> int:
        return len(self.values) + len(self.gaps)


@dataclass(frozen=True)
class Row:
    """A rule in one setting, under all attacks."""

    rule: str
    group: tuple[str, ...]
    """Values of the other settings that vary, in the order of `WorstCases.by`."""
    cells: Mapping[str, Cell]
    """By attack, those without attackers left out."""
    clean: Cell | None
    """Without attackers, and all else as here."""
    carried: Mapping[str, str]
    """Settings that go with the rule, as a learning rate that was tuned for it, by path."""
    worst: float | None
    """The worst mean over the attacks; None where no attack has a finished run."""
    worst_attack: str | None
    worst_run: float | None
    """The worst single run."""
    worst_run_at: tuple[str, str] | None
    """The attack and the seed of that run."""
    complete: bool
    """Whether every attack that other rules in this setting stand has all of its runs: where not, the worst
    case may be worse."""


@dataclass(frozen=True)
class WorstCases:
    """The table of worst cases: a row for each rule, and for each setting that varies."""

    metric: str
    at: At
    better: Better
    by: tuple[str, ...]
    """Paths of the settings that vary besides rule, attack and seed: headings of the groups."""
    carried: tuple[str, ...]
    """Paths of the settings that go with the rule."""
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    """By group, then in the order of the rules."""
    tuned: str | None = None
    """The path of the setting that was chosen for each row, if one was."""
    best: Mapping[tuple[str | None, tuple[str, ...]], frozenset[str]] = field(
        default_factory=dict[tuple[str | None, tuple[str, ...]], frozenset[str]]
    )
    """The best rules by attack and group; the attack is None for the worst case."""

    @property
    def heading(self) -> str:
        """The kind of the numbers, in a few words."""
        return f"{self.metric.replace('_', ' ')}, {self.when}"

    @property
    def when(self) -> str:
        """The evaluation that counts, in words."""
        words = {"final": "at the end", "best": "at the best evaluation"}
        return words[self.at] if isinstance(self.at, str) else f"mean of the last {self.at} evaluations"

    def is_best(self, row: Row, attack: str | None = None) -> bool:
        """Whether no rule of the same group is better under this attack, or in the worst case."""
        return row.rule in self.best.get((attack, row.group), ())


def worst_cases(
    cases: Sequence[Case],
    *,
    metric: str,
    at: At = "final",
    better: Better | None = None,
    by: tuple[str, ...] = (),
    shared: Sequence[int] = (),
    carried: Mapping[tuple[str, tuple[str, ...]], Mapping[str, str]] | None = None,
    tuned: str | None = None,
) -> WorstCases:
    """The table of worst cases.

    Args:
        cases: of a study.
        metric: a score by its name.
        at: the evaluation that counts.
        better: its direction; None goes by its name.
        by: headings of the groups.
        shared: places in a group that say how many attack: there runs without attackers have no value of
            their own, and stand beside every row.
        carried: settings of a row that go with the rule, by rule and group.
        tuned: the path of the one that was chosen.
    """
    better = better or better_of(metric)
    attacks = tuple(dict.fromkeys(case.attack for case in cases if not case.clean))
    attacked: dict[tuple[str, tuple[str, ...]], dict[str, Cell]] = {}
    clean: dict[tuple[str, tuple[str, ...]], Cell] = {}
    for case in cases:
        cell = _cell(case, metric, at, better)
        cells = attacked.setdefault((case.rule, case.group), {})
        if case.clean:
            clean.setdefault((case.rule, _without(case.group, shared)), cell)
        else:
            cells[case.attack] = cell
    # Where a rule stands beside others the same attacks count, and elsewhere there may be others.
    in_group: dict[tuple[str, ...], set[str]] = {}
    for (_, group), cells in attacked.items():
        in_group.setdefault(group, set()).update(cells)
    # A row of runs without attackers alone, unless they stand beside another.
    filled = {(rule, _without(group, shared)) for (rule, group), cells in attacked.items() if cells}
    rows = [
        _row(
            place,
            cells,
            clean.get((place[0], _without(place[1], shared))),
            tuple(attack for attack in attacks if attack in in_group[place[1]]),
            better,
            (carried or {}).get(place, {}),
        )
        for place, cells in attacked.items()
        if cells or (place[0], _without(place[1], shared)) not in filled
    ]
    rows.sort(key=lambda row: [natural(value) for value in row.group])
    return WorstCases(
        metric=metric,
        at=at,
        better=better,
        by=by,
        carried=tuple(dict.fromkeys(path for row in rows for path in row.carried)),
        attacks=attacks,
        rows=tuple(rows),
        tuned=tuned,
        best=_best(rows, (None, NONE, *attacks), better),
    )


def _cell(case: Case, metric: str, at: At, better: Better) -> Cell:
    found = zip(case.seeds, case.runs, case.scores(metric, at, better), strict=True)
    scored: list[tuple[str, float]] = []
    gaps = list(case.gaps)
    for seed, run, value in found:
        if value is None:
            gaps.append(Gap(seed, run.state, f"the run has no {metric}", run))
        else:
            scored.append((seed, value))
    values = tuple(value for _, value in scored)
    seeds = tuple(seed for seed, _ in scored)
    return Cell(values, seeds, tuple(gaps), case.early, *mean_and_std(values))


def _row(
    place: tuple[str, tuple[str, ...]],
    cells: Mapping[str, Cell],
    clean: Cell | None,
    attacks: tuple[str, ...],
    better: Better,
    carried: Mapping[str, str],
) -> Row:
    ordered = {attack: cells[attack] for attack in attacks if attack in cells}
    sign = 1 if better == "higher" else -1
    means = [(sign * cell.mean, attack) for attack, cell in ordered.items() if cell.mean is not None]
    single = [
        (sign * value, attack, seed)
        for attack, cell in ordered.items()
        for value, seed in zip(cell.values, cell.seeds, strict=True)
    ]
    worst = min(means, key=lambda entry: entry[0], default=None)
    run = min(single, key=lambda entry: entry[0], default=None)
    return Row(
        rule=place[0],
        group=place[1],
        cells=ordered,
        clean=clean,
        carried=carried,
        worst=sign * worst[0] if worst else None,
        worst_attack=worst[1] if worst else None,
        worst_run=sign * run[0] if run else None,
        worst_run_at=(run[1], run[2]) if run else None,
        complete=len(ordered) in (0, len(attacks)) and not any(cell.gaps for cell in ordered.values()),
    )


def _best(
    rows: Sequence[Row], columns: Sequence[str | None], better: Better
) -> dict[tuple[str | None, tuple[str, ...]], frozenset[str]]:
    """The rules with the best value of each column, within each group of at least two rules.

    A worst case that lacks an attack is not among the best: it may be worse than it looks.
    """
    found: dict[tuple[str | None, tuple[str, ...]], frozenset[str]] = {}
    for group in dict.fromkeys(row.group for row in rows):
        for column in columns:
            values = {row.rule: _value(row, column) for row in rows if row.group == group}
            known = {rule: value for rule, value in values.items() if value is not None}
            if len(known) > 1:
                best = max(known.values()) if better == "higher" else min(known.values())
                if math.isfinite(best):
                    rules = frozenset(rule for rule, value in known.items() if value == best)
                    found[column, group] = rules
    return found


def _value(row: Row, column: str | None) -> float | None:
    if column is None:
        return row.worst if row.complete else None
    cell = row.clean if column == NONE else row.cells.get(column)
    return None if cell is None else cell.mean


def _without(group: tuple[str, ...], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(value for i, value in enumerate(group) if i not in places)
