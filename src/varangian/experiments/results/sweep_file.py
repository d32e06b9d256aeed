"""The plan of a sweep, as its `.sweep.json` has it: which runs there should be, and what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from varangian.experiments.results.run import ResultsError

ENDING = ".sweep.json"


@dataclass(frozen=True)
class Point:
    """One run of the plan."""

    id: str
    """The name of its folder, beside the file of the sweep."""
    settings: Mapping[str, Any]
    """What varies in the sweep, by path, as it was written."""
    seed: int | None
    config: Mapping[str, Any] | None
    """Every setting, resolved; None where the file does not say."""


@dataclass(frozen=True)
class Choice:
    """The value of a tuned setting for some of the points."""

    settings: Mapping[str, Any]
    """The points: those with these values, by path."""
    value: Any

    def covers(self, point: Point) -> bool:
        return all(point.settings.get(path) == value for path, value in self.settings.items())


@dataclass(frozen=True)
class SweepFile:
    """The plan of a sweep."""

    path: Path
    name: str
    points: tuple[Point, ...]
    left_out: tuple[tuple[Mapping[str, Any], str], ...]
    """Points that were impossible or excluded: their settings, and the reason."""
    tuned: str | None
    """The path of the setting that was tuned; None where none was."""
    choices: tuple[Choice, ...]

    def chosen(self, point: Point) -> bool:
        """Whether a point has the value that was chosen for its like; of a sweep without tuning, yes."""
        return self.tuned is None or any(
            choice.covers(point) and point.settings.get(self.tuned) == choice.value
            for choice in self.choices
        )


def read_sweep(path: Path) -> SweepFile:
    """Read the plan of a sweep.

    Raises:
        ResultsError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} should be the JSON of a sweep: {error}.") from error
    try:
        return _sweep(path, value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ResultsError(
            f"{path} should be the JSON of a sweep. Its part {error} is missing or misplaced. Type the "
            "sweep again: it writes the file anew, and does no run twice."
        ) from error


def _sweep(path: Path, value: Mapping[str, Any]) -> SweepFile:
    common = value.get("config")
    tune = cast("Mapping[str, Any]", value.get("tune") or {})
    return SweepFile(
        path=path,
        name=str(value.get("name") or path.name.removesuffix(ENDING)),
        points=tuple(_point(point, common) for point in value["points"]),
        left_out=tuple(
            (dict(point["settings"]), str(point.get("reason") or kind))
            for kind in ("impossible", "excluded")
            for point in value.get(kind) or ()
        ),
        tuned=tune.get("path"),
        choices=tuple(Choice(dict(one["settings"]), one["value"]) for one in tune.get("chosen") or ()),
    )


def _point(point: Mapping[str, Any], common: Mapping[str, Any] | None) -> Point:
    own = point.get("config")
    config = None if common is None or own is None else {**common, **own}
    return Point(str(point["id"]), dict(point["settings"]), point.get("seed"), config)
