"""Filter of runs by their settings, as `f=6 partition=iid`.

A name stands for a part of a configuration with any fields: `byzantine.attack=alie` is ALIE with every z.
Fields that are written must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from varangian.config.overrides import Assignment, from_command_line
from varangian.experiments.results.labels import ABSENT, PER_BLOCK, flatten, is_named, parts_of, text_of
from varangian.experiments.results.read import Point, Results, SweepFile
from varangian.experiments.results.run import ResultsError, Run
from varangian.registry import ConfigError, suggestion

SHOWN = 12
"""So many values of a setting are named where none is the one that was asked for."""


@dataclass(frozen=True)
class Filter:
    """Settings that runs must have, by path; of several values of one path, any."""

    wanted: Mapping[str, tuple[Any, ...]]
    texts: tuple[str, ...]
    """The settings as they were written."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Filter:
        """From `key=value`, the value in YAML.

        Raises:
            ResultsError: one is not of this form.
        """
        try:
            assignments: list[Assignment] = from_command_line(texts)
        except ConfigError as error:
            raise ResultsError(str(error)) from error
        wanted: dict[str, tuple[Any, ...]] = {}
        for one in assignments:
            wanted[one.path] = (*wanted.get(one.path, ()), one.value)
        return cls(wanted, tuple(texts))

    def __call__(self, results: Results) -> Results:
        """The runs with these settings, and of plans their points.

        Raises:
            ResultsError: there is no such run.
        """
        if not self.wanted:
            return results
        configs = {run.folder: _config(run) for run in results}
        runs = tuple(run for run in results if self.fits(configs[run.folder]))
        if not runs:
            raise ResultsError(self._nothing(list(configs.values())))
        return Results(runs, tuple(map(self._of_sweep, results.sweeps)))

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration has these settings."""
        return all(
            any(agrees(value, at(config, path)) for value in values) for path, values in self.wanted.items()
        )

    def _of_sweep(self, sweep: SweepFile) -> SweepFile:
        points = tuple(point for point in sweep.points if self.fits(_settings(point)))
        left_out = tuple(
            (settings, reason)
            for settings, reason in sweep.left_out
            if all(
                any(agrees(value, settings[path]) for value in values)
                for path, values in self.wanted.items()
                if path in settings
            )
        )
        return replace(sweep, points=points, left_out=left_out)

    def _nothing(self, configs: Sequence[Mapping[str, Any]]) -> str:
        """The sentence about settings that no run has."""
        for path, values in self.wanted.items():
            found = [value for config in configs if (value := at(config, path)) != ABSENT]
            if not found:
                known = dict.fromkeys(key for config in configs for key, _ in flatten(config))
                return f"No run has the setting {path}. {suggestion(path, [*known])}"
            if not any(agrees(value, one) for value in values for one in found):
                names = [*dict.fromkeys(_name(value) for value in found)]
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                asked = " or ".join(f"{path}={text_of(value)}" for value in values)
                return f"No run has {asked}. Values in these runs: {', '.join(names[:SHOWN])}{more}."
        return f"No run has all of these settings: {' '.join(self.texts)}. Leave one of them out."


EVERYTHING = Filter({}, ())
"""Every run."""


def agrees(wanted: Any, found: Any) -> bool:
    """Whether a setting has a value as it is written."""
    if isinstance(found, Mapping):
        fields = cast("Mapping[str, Any]", found)
        if isinstance(wanted, Mapping):
            asked = cast("Mapping[str, Any]", wanted)
            return all(key in fields and agrees(value, fields[key]) for key, value in asked.items())
        return is_named(fields) and wanted == _name(fields)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(wanted) == len(found) and all(map(agrees, wanted, found))
    return isinstance(wanted, bool) == isinstance(found, bool) and bool(wanted == found)


def at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a path; ABSENT where there is none."""
    place: Any = config
    for key in path.split("."):
        if not isinstance(place, Mapping) or key not in place:
            return ABSENT
        place = cast("Mapping[str, Any]", place)[key]
    return place


def _name(value: Any) -> str:
    """The names in a value without their fields, as `nnm+median`."""
    if not is_named(value):
        return text_of(value)
    return "+".join(name for name, _ in parts_of(value) if name != PER_BLOCK)


def _config(run: Run) -> Mapping[str, Any]:
    """The configuration; empty of a run that failed before it had one."""
    try:
        return run.config
    except ResultsError:
        if run.state not in ("error", "unfinished"):
            raise
        return {}


def _settings(point: Point) -> Mapping[str, Any]:
    return point.settings if point.config is None else point.config
