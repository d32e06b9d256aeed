"""The plan of a sweep: the points of a grid, each a run; and those that are left out, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from varangian import __version__
from varangian.config import RunConfig
from varangian.config.identity import identity_of
from varangian.config.load import check
from varangian.config.overrides import apply_overrides
from varangian.config.settings import groups
from varangian.experiments.results.read import ENDING
from varangian.experiments.sweep.grid import GridFile, assignments
from varangian.files import user_path
from varangian.registry import ConfigError, Problem
from varangian.worker.simulation.availability import Always

MOST_POINTS = 10_000
"""More have to be asked for."""
SHOWN = 5
"""Reasons that are given where no point is possible."""
ATTACK, COUNT = "byzantine.attack", "byzantine.count"
NAMED = (ATTACK, "aggregator", "partition", "model", "data", "participation")
"""Settings whose values say by their names what they are."""


@dataclass(frozen=True)
class Point:
    """A point of a grid: one run."""

    id: str
    settings: Mapping[str, Any]
    """The settings that vary, by path, without the seed."""
    seed: int
    config: RunConfig = dataclasses.field(repr=False)

    @property
    def label(self) -> str:
        """`nnm+krum  alie  lr 0.1  seed 2`: what sets the run apart from the others."""
        return f"{label(self.settings)}  seed {self.seed}".strip()


@dataclass(frozen=True)
class LeftOut:
    """A point without runs, and the reason."""

    settings: Mapping[str, Any]
    reason: str

    def plain(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), "reason": self.reason}


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep is going to do."""

    grid: GridFile
    output: Path
    """The folder of run folders."""
    points: tuple[Point, ...]
    excluded: tuple[LeftOut, ...] = ()
    impossible: tuple[LeftOut, ...] = ()
    """Points that no run can be made of: a rule whose condition fails, an attack that cannot be mounted."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read before anything runs."""

    @property
    def file(self) -> Path:
        """The index of the sweep, beside its run folders."""
        return self.output / f"{self.grid.name}{ENDING}"

    def plain(self) -> dict[str, Any]:
        """The index of the sweep as JSON takes it; it holds no results, those are in the run folders."""
        first = self.points[0].config.resolved()
        return {
            "name": self.grid.name,
            "varangian": __version__,
            "grid": self.grid.plain(),
            "varying": [*self.grid.varying],
            "config": first,
            "points": [
                {
                    "id": point.id,
                    "settings": dict(point.settings),
                    "seed": point.seed,
                    "config": _differences(first, point.config.resolved()),
                }
                for point in self.points
            ],
            "excluded": [left.plain() for left in self.excluded],
            "impossible": [left.plain() for left in self.impossible],
        }


def make_plan(grid: GridFile, *, most: int | None = MOST_POINTS) -> Plan:
    """The points of a grid, checked.

    A point without an attack has no attackers, and one without attackers no attack; points that become the
    same by that are one.

    Args:
        grid: the grid.
        most: the most points, excluded ones included; None is no limit.

    Raises:
        ConfigError: there are more points, two are the same run, or no point is possible.
    """
    if most is not None and grid.size > most:
        rule = f"has {grid.size} points, and more than {most} have to be asked for"
        raise ConfigError([Problem("grid", rule, hint="Add --yes if that is meant.")])
    planner = _Planner(grid)
    for settings in _combinations(grid):
        planner.add(settings)
    return planner.plan()


class _Planner:
    """Takes the combinations of a grid one by one, and sorts them."""

    def __init__(self, grid: GridFile) -> None:
        self._grid, self._groups = grid, groups()
        self._points = dict[str, Point]()
        self._excluded, self._impossible = list[LeftOut](), list[LeftOut]()
        self._problems = list[Problem]()
        self._used = set[int]()
        """The exclude rules that a point matched."""

    def add(self, settings: Mapping[str, Any]) -> None:
        """Sort one combination of settings, with all seeds."""
        rules = self._grid.exclude
        if matching := [number for number, rule in enumerate(rules) if _matches(rule, settings)]:
            self._used.update(matching)
            reason = f"exclude.{matching[0]}: {label(rules[matching[0]])}"
            self._excluded.append(LeftOut(settings, reason))
            return
        written = apply_overrides(self._grid.base, assignments(settings), self._groups)
        settings, written = _without_half_attacks(settings, written)
        checked = check(written)
        # With absences by chance, whether rounds can close depends on the seed.
        by_seed = checked.config is not None and not isinstance(checked.config.availability, Always)
        if checked.config is None or (checked.problems and not by_seed):
            self._refuse(settings, checked.problems)
            return
        resolved = checked.config.resolved()
        for seed in self._grid.seeds or (checked.config.seed,):
            config = checked.config.model_copy(update={"seed": seed})
            if by_seed and (problems := check({**written, "seed": seed}).problems):
                self._refuse({**settings, "seed": seed}, problems)
            else:
                self._take(Point(identity_of({**resolved, "seed": seed}), settings, seed, config))

    def _take(self, point: Point) -> None:
        other = self._points.setdefault(point.id, point)
        if other.settings != point.settings:
            rule = f"has two points that are the same run: {other.label}, and {point.label}"
            self._problems.append(Problem("grid", rule))

    def _refuse(self, settings: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        reason = str(dataclasses.replace(problems[0], hint="", fixes=()))
        left = LeftOut(settings, reason)
        if left not in self._impossible[-SHOWN:]:
            self._impossible.append(left)

    def plan(self) -> Plan:
        if self._problems:
            raise ConfigError(self._problems[:SHOWN])
        if not self._points:
            raise ConfigError(self._nothing_left())
        rules = enumerate(self._grid.exclude)
        notes = [
            f"exclude.{i} excludes no point: {label(rule)}" for i, rule in rules if i not in self._used
        ]
        points = tuple(self._points.values())
        output = user_path(points[0].config.output)
        return Plan(
            self._grid, output, points, tuple(self._excluded), tuple(self._impossible), tuple(notes)
        )

    def _nothing_left(self) -> list[Problem]:
        if not self._impossible:
            return [Problem("exclude", "leaves no point of the grid")]
        reasons = [*dict.fromkeys(left.reason for left in self._impossible)][:SHOWN]
        return [
            Problem("grid", f"has no point that is possible. {reason}".rstrip(".")) for reason in reasons
        ]


def label(settings: Mapping[str, Any]) -> str:
    """`nnm+krum  alie  lr 0.1`: settings in short, rules and attacks without the name of the setting."""
    return "  ".join(_label(path, value) for path, value in settings.items())


def _label(path: str, value: Any) -> str:
    if path == ATTACK and value is None:
        return "no attack"
    if path in NAMED:
        return short(value.rpartition(":")[2] if isinstance(value, str) else value)
    return f"{path.rpartition('.')[2]} {short(value)}"


def short(value: Any) -> str:
    """A value in a few words: `krum`, `krum (select 3)`, `nnm+krum`, `krum per block`, `0.1`."""
    if isinstance(value, Mapping):
        if "rule" in value:
            parts = "+".join(map(short, [*(value.get("mix") or []), value["rule"]]))
            return f"{parts} per block" if value.get("per_block") is True else parts
        if len(value) == 1:
            ((name, fields),) = value.items()
            name = str(name).rpartition(":")[2]  # of `module:Class` the class
            if not isinstance(fields, Mapping) or not fields:
                return name
            return f"{name} ({', '.join(f'{key} {short(field)}' for key, field in fields.items())})"
        return ", ".join(f"{key} {short(one)}" for key, one in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value)) or "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _combinations(grid: GridFile) -> Iterator[dict[str, Any]]:
    """Every case with every point of the axes."""
    for case, *values in product(grid.cases or ({},), *(axis.values for axis in grid.axes)):
        axes = zip(grid.axes, values, strict=True)
        yield {**case, **{path: value for axis, value in axes for path in axis.paths}}


def _matches(rule: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a point has, in each setting of the rule, its value or one of its values."""

    def same(written: Any, value: Any) -> bool:
        return bool(written == value) or (isinstance(written, Mapping) and [*written] == [value])

    return all(
        path in settings and any(same(settings[path], value) for value in _as_list(values))
        for path, values in rule.items()
    )


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _without_half_attacks(
    settings: Mapping[str, Any], written: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The point with neither an attack nor attackers where one of the two is missing."""
    byzantine = dict(written.get("byzantine") or {})
    if ATTACK in settings and byzantine.get("attack") is None and byzantine.get("count"):
        changed, value = COUNT, 0
    elif COUNT in settings and not byzantine.get("count") and byzantine.get("attack") is not None:
        changed, value = ATTACK, None
    else:
        return dict(settings), dict(written)
    byzantine[changed.partition(".")[2]] = value
    kept = {path: value if path == changed else old for path, old in settings.items()}
    return kept, {**written, "byzantine": byzantine}


def _differences(first: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved settings that differ from those of the first point."""
    return {key: value for key, value in own.items() if value != first[key]}
