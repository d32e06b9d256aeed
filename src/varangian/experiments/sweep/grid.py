"""Grid files: a base configuration, and the settings that vary between its runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from varangian.config import RunConfig
from varangian.config.identity import has_effect
from varangian.config.load import check
from varangian.config.overrides import Assignment, apply_overrides
from varangian.config.settings import groups
from varangian.config.yaml_text import read
from varangian.files import user_path
from varangian.registry import ConfigError, Problem, join, suggestion

KEYS = ("name", "base", "grid", "cases", "exclude", "seeds", "tune")
NAME = "sweep"
"""The name of a grid that has none, and is in no file."""
LONGEST_NAME = 200
"""Bytes: the index of the sweep adds an ending, and a name of a file has at most 255."""
VALIDATION = 0.1
"""The share of the training data with which a value is chosen, unless the grid says another."""
MOST_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Axis:
    """Settings that vary together, all with the same value."""

    paths: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def key(self) -> str:
        """As it stands in the grid."""
        return ", ".join(self.paths)


@dataclass(frozen=True)
class GridFile:
    """The content of a grid file, with the settings of all its runs."""

    name: str
    base: Mapping[str, Any]
    """The settings of every run; an axis or a case may replace them."""
    axes: tuple[Axis, ...] = ()
    """Their full product is taken."""
    cases: tuple[Mapping[str, Any], ...] = ()
    """Settings that are given together; each case is combined with every point of the axes."""
    exclude: tuple[Mapping[str, Any], ...] = ()
    """Points that have all values of one of these are left out."""
    seeds: tuple[int, ...] | None = None
    """None is the seed of `base`."""
    tune: str | None = None
    """The setting of which one value is chosen."""

    @classmethod
    def read(cls, path: str | Path, overrides: Iterable[Assignment] = ()) -> GridFile:
        """The grid in a YAML file, with settings of all its runs on top of its base.

        Raises:
            ConfigError: with every problem found.
        """
        file = user_path(path)
        return cls.of(read(file), name=file.stem, folder=file.parent, overrides=overrides)

    @classmethod
    def of(
        cls,
        content: Mapping[str, Any],
        *,
        name: str = NAME,
        folder: Path | None = None,
        overrides: Iterable[Assignment] = (),
    ) -> GridFile:
        """The grid in a mapping.

        Args:
            content: as in a file.
            name: unless the grid has one.
            folder: where the file of `base` is looked for; by default the current one.
            overrides: settings of all runs.

        Raises:
            ConfigError: with every problem found.
        """
        problems, overrides = [*_unknown_keys(content)], [*overrides]
        reader = _Reader(content, folder or Path(), problems)
        base = reader.base()
        axes, cases, exclude = reader.axes(), reader.cases("cases"), reader.cases("exclude")
        seeds, named = reader.seeds(), reader.name(name)
        tune, validation = reader.tune(axes)
        _check_whole(axes, cases, seeds, problems)
        if problems:
            raise ConfigError(problems)
        base = _with_defaults(apply_overrides(base, overrides, groups()), validation)
        grid = cls(named, base, axes, cases, exclude, seeds, tune)
        grid.check(content, {assignment.path for assignment in overrides})
        return grid

    def with_seeds(self, seeds: Sequence[int]) -> GridFile:
        """The grid with other seeds.

        Raises:
            ConfigError: the seed varies already.
        """
        problems = list[Problem]()
        _check_whole(self.axes, self.cases, (*seeds,), problems)
        if problems:
            raise ConfigError(problems)
        return GridFile(self.name, self.base, self.axes, self.cases, self.exclude, (*seeds,), self.tune)

    @property
    def varying(self) -> tuple[str, ...]:
        """The paths of the settings that vary, without the seed."""
        paths = [path for axis in self.axes for path in axis.paths]
        return (*dict.fromkeys([*paths, *(path for case in self.cases for path in case)]),)

    @property
    def size(self) -> int:
        """The number of points, those that will be left out among them."""
        return (
            prod(len(axis.values) for axis in self.axes) * len(self.cases or [0]) * len(self.seeds or [0])
        )

    def plain(self) -> dict[str, Any]:
        """The grid as it could stand in a file, with everything resolved."""
        return {
            "name": self.name,
            "base": dict(self.base),
            "grid": {axis.key: [*axis.values] for axis in self.axes},
            "cases": [dict(case) for case in self.cases],
            "exclude": [dict(rule) for rule in self.exclude],
            "seeds": None if self.seeds is None else [*self.seeds],
            "tune": self.tune,
        }

    def check(self, content: Mapping[str, Any], overridden: Iterable[str] = ()) -> None:
        """Check every path and every value by itself, on top of the base.

        Args:
            content: as in the file, for the paths of problems.
            overridden: paths of settings that were given for all runs.

        Raises:
            ConfigError: with every problem found.
        """
        found = check(self.base).invalid
        problems = [_in_base(problem, content) for problem in found]
        known = {(problem.path, problem.rule) for problem in found}
        for axis in self.axes:
            for value in axis.values:
                problems += self._check_values(dict.fromkeys(axis.paths, value), "grid", known)
        for number, case in enumerate(self.cases):
            problems += self._check_values(case, f"cases.{number}", known)
        for number, excluded in enumerate(self.exclude):
            for path in excluded:
                if path not in self.varying:
                    says, hint = "should name settings that vary", suggestion(path, self.varying)
                    problems.append(Problem(f"exclude.{number}", says, path, hint))
        rule = "varies in the grid, so it cannot be set for all runs"
        problems += [
            Problem(path, rule, hint="Leave one of them out.")
            for path in overridden
            if path in self.varying or (path == "seed" and self.seeds is not None)
        ]
        if problems:
            raise ConfigError(_without_repetitions(problems))

    def _check_values(
        self, settings: Mapping[str, Any], at: str, known: set[tuple[str, str]]
    ) -> Iterator[Problem]:
        """Problems that these settings have by themselves."""
        if unfit := [path for path in settings if not has_effect(path)]:
            rule = "should not vary: the numbers of a run do not depend on it"
            yield from (Problem(join(at, path), rule) for path in unfit)
            return
        try:
            changed = apply_overrides(self.base, assignments(settings), groups())
        except ConfigError as error:
            yield from (problem.below(at) for problem in error.problems)
            return
        for problem in check(changed).invalid:
            if (problem.path, problem.rule) not in known:
                yield problem.with_fixes([]).below(at)


def assignments(settings: Mapping[str, Any]) -> list[Assignment]:
    """The settings as overrides, those of a part after those of the whole."""
    ordered = sorted(settings.items(), key=lambda entry: entry[0].count("."))
    return [Assignment(path, value, path) for path, value in ordered]


def _without_repetitions(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems, each unknown setting once and not for every value."""
    seen = set[tuple[str, str]]()
    for problem in problems:
        same = (problem.path, problem.rule)
        if same in seen and problem.rule.startswith("there is no such"):
            continue
        seen.add(same)
        yield problem


class _Reader:
    """The parts of a grid file, each checked for its form; problems are collected."""

    def __init__(self, content: Mapping[str, Any], folder: Path, problems: list[Problem]) -> None:
        self._content, self._folder, self._problems = content, folder, problems

    def _say(self, path: str, rule: str, value: Any, hint: str = "") -> None:
        self._problems.append(Problem(path, rule, value, hint))

    def name(self, default: str) -> str:
        found = self._content.get("name", default)
        if not isinstance(found, str) or not found.strip() or "/" in found or found.startswith("."):
            self._say("name", "should be a name of files, without a slash", found)
        elif not found.isprintable() or len(os.fsencode(found)) > LONGEST_NAME:
            rule = f"should be a name of files, of at most {LONGEST_NAME} bytes that can be printed"
            self._say("name", rule, found)
        return str(found)

    def base(self) -> dict[str, Any]:
        found = self._content.get("base")
        if found is None:
            return {}
        if isinstance(found, str):
            try:
                return read(self._folder / user_path(found))
            except ConfigError as error:
                self._problems += error.problems
                return {}
        if not isinstance(found, Mapping):
            self._say("base", "should be a mapping of settings to values, or the path of a file", found)
            return {}
        return dict(found)

    def axes(self) -> tuple[Axis, ...]:
        found = self._content.get("grid") or {}
        if not isinstance(found, Mapping):
            self._say("grid", "should be a mapping of settings to lists of values", found)
            return ()
        axes = list[Axis]()
        for key, written in found.items():
            here = join("grid", key)
            values = self._list_of(written, str(key), here) if isinstance(written, str) else written
            if not isinstance(values, list | tuple | range):  # a program may have the others
                self._say(
                    here, "should be a list of values", values, "A single value belongs below `base`."
                )
            elif not values:
                self._say(here, "should have at least one value", values)
            else:
                self._repeated(here, values)
                axes.append(Axis(tuple(path.strip() for path in str(key).split(",")), tuple(values)))
        return tuple(axes)

    def _list_of(self, written: str, key: str, here: str) -> Any:
        """The list of an axis in another file, which several grids share; as written if it is no file."""
        if not written.endswith((".yaml", ".yml")):
            return written
        try:
            found = read(self._folder / user_path(written))
        except ConfigError as error:
            self._problems += error.problems
            return [None]
        if key not in found:
            self._say(here, f"should name a file with a list {key!r}", written, suggestion(key, found))
            return [None]
        return found[key]

    def cases(self, key: str) -> tuple[Mapping[str, Any], ...]:
        found = self._content.get(key)
        if found is None:
            return ()
        if not isinstance(found, list) or not found:
            self._say(key, "should be a list of mappings of settings to values, at least one", found)
            return ()
        for number, case in enumerate(found):
            if not isinstance(case, Mapping) or not case:
                self._say(f"{key}.{number}", "should be a mapping of settings to values", case)
        self._repeated(key, found)
        return tuple(case for case in found if isinstance(case, Mapping) and case)

    def seeds(self) -> tuple[int, ...] | None:
        found = self._content.get("seeds")
        if found is None:
            return None
        if isinstance(found, int) and not isinstance(found, bool) and found >= 1:
            return tuple(range(1, found + 1))
        seeds: list[Any] = found if isinstance(found, list) else []
        if not seeds or not all(type(one) is int and 0 <= one <= MOST_SEED for one in seeds):
            self._say("seeds", "should be a number of seeds, or a list of whole numbers from 0", found)
            return None
        self._repeated("seeds", seeds)
        return tuple(seeds)

    def tune(self, axes: Sequence[Axis]) -> tuple[str | None, float | None]:
        """The setting that is tuned, and the share of the training data with which it is."""
        found = self._content.get("tune")
        if found is None:
            return None, None
        given = found if isinstance(found, Mapping) else {"setting": found}
        if unknown := [key for key in given if key not in ("setting", "validation")]:
            self._say(join("tune", unknown[0]), "there is no such part of `tune`", given[unknown[0]])
        path, share = given.get("setting"), given.get("validation", VALIDATION)
        if not isinstance(share, float) or not 0 < share < 1:
            self._say("tune.validation", "should be a share of the training data, between 0 and 1", share)
            share = None
        single = {axis.paths[0]: axis.values for axis in axes if len(axis.paths) == 1}
        if path in ("seed", "byzantine.attack"):
            self._say("tune", "should be a setting that a user chooses", path, "As optimizer.lr.")
        elif not isinstance(path, str) or path not in single:
            near = suggestion(str(path), single)
            self._say("tune", "should be a setting with several values in `grid`", path, near)
        elif len(single[path]) < 2:
            self._say("tune", "should have several values in `grid` to choose from", list(single[path]))
        return str(path), share

    def _repeated(self, path: str, values: Sequence[Any]) -> None:
        """A value that is there twice, which would be the same runs."""
        for number, value in enumerate(values):
            # A boolean is equal to a number, and another value.
            if any(value == other and type(value) is type(other) for other in values[:number]):
                self._say(path, "has a value twice", value)
                return


def _unknown_keys(content: Mapping[str, Any]) -> Iterator[Problem]:
    for key in content:
        if key not in KEYS:
            hint = suggestion(str(key), KEYS)
            if str(key).partition(".")[0] in RunConfig.model_fields:
                hint = "It is a setting: write it below `base`, or as a list of values below `grid`."
            yield Problem(str(key), "there is no such part of a grid", content[key], hint)


def _check_whole(
    axes: Sequence[Axis],
    cases: Sequence[Mapping[str, Any]],
    seeds: Sequence[int] | None,
    problems: list[Problem],
) -> None:
    """Paths that are in two places, and a grid in which nothing varies."""
    paths = [path for axis in axes for path in axis.paths]
    among = {path for case in cases for path in case}
    problems += [
        Problem(join("grid", path), "should be in one place of the grid, and is in two")
        for path in dict.fromkeys(paths)
        if paths.count(path) > 1 or path in among
    ]
    if seeds is not None and ("seed" in paths or "seed" in among):
        problems.append(Problem("seeds", "should be left out where `seed` varies in the grid"))
    if not axes and not cases and seeds is None and not problems:
        rule = "should say what varies, as `byzantine.attack: [sign_flip, alie]`"
        problems.append(Problem("grid", rule, hint="A single run is for `varangian run`."))


def _with_defaults(base: Mapping[str, Any], validation: float | None) -> dict[str, Any]:
    """The base with what a sweep has by default."""
    settings: dict[str, Any] = {"backend": "simulate", **base}
    if settings["backend"] == "simulate":
        settings = _with_default(settings, "simulate", "gradients", "batched")
    if validation is not None:
        settings = _with_default(settings, "evaluate", "validation", validation)
    return settings


def _with_default(settings: Mapping[str, Any], section: str, name: str, value: Any) -> dict[str, Any]:
    """The settings with this one in a section, unless it is there."""
    given = settings.get(section)
    if given is not None and not isinstance(given, Mapping):
        return dict(settings)
    return {**settings, section: {name: value, **(given or {})}}


def _in_base(problem: Problem, content: Mapping[str, Any]) -> Problem:
    """The problem at its place in the file, unless it came from elsewhere, as the command line."""
    node: Any = content.get("base")
    for key in problem.path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return problem
        node = node[key]
    return problem.below("base")
