"""Runs found below paths: run folders, folders of them, and the plans of sweeps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import varangian
from varangian.experiments.results.run import RUNNING, ResultsError, Run, is_run
from varangian.files import user_path

Note: TypeAlias = Callable[[str], None]
ENDING = ".sweep.json"
"""Ending of the name of the plan of a sweep."""
DEPTH = 4
"""Levels of folders below a path that are searched."""
FOLDER = re.compile(r"[0-9A-Za-z_-]{1,100}")
"""Names of run folders in the plan of a sweep: none leads out of the folder in which the plan is."""
SHOWN = 5
"""So many damaged runs are named; of more, the number is told."""


@dataclass(frozen=True)
class Point:
    """One run of the plan."""

    id: str
    """The name of its folder, beside the file of the sweep."""
    settings: Mapping[str, Any]
    """The settings that vary in the sweep, by path, as they were written."""
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
    """The plan of a sweep, as its file has it: which runs there should be, and what was chosen."""

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


@dataclass(frozen=True)
class Results:
    """The runs that were found, and the plans that some of them belong to."""

    runs: tuple[Run, ...]
    sweeps: tuple[SweepFile, ...] = ()

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def read_run(path: str | os.PathLike[str]) -> Run:
    """The run of a folder.

    Raises:
        ResultsError: it is not that of a run, or the run is damaged.
    """
    folder = user_path(path)
    if not is_run(folder):
        hint = "There is no such folder" if not folder.is_dir() else "It has neither records nor a manifest"
        raise ResultsError(f"{folder} should be the folder of a run. {hint}.")
    run = Run(folder)
    run.check()
    return run


def read_runs(paths: Iterable[str | os.PathLike[str]], note: Note = lambda _: None) -> Results:
    """The runs of run folders, of folders of them, and of the plans of sweeps.

    Args:
        paths: of these; a run that several of them lead to is read once.
        note: takes a sentence about what was read all the same, as runs of another version.

    Raises:
        ResultsError: a path is missing or leads to no run, or runs are damaged.
    """
    runs: dict[Path, Run] = {}
    sweeps: dict[Path, SweepFile] = {}
    for path in map(user_path, paths):
        try:
            found = list(_found(path))
        except OSError as error:
            raise ResultsError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
        if not found:
            raise ResultsError(
                f"{path} should be the folder of a run, a folder of such folders, or the {ENDING} of a "
                "sweep. There is no run in it."
            )
        for folder, sweep in found:
            if sweep is not None:
                sweeps.setdefault(sweep.path.resolve(), sweep)
            if folder is not None:
                runs.setdefault(folder.resolve(), Run(folder))
    _check(runs.values())
    _note_versions(runs.values(), note)
    return Results(tuple(runs.values()), tuple(sweeps.values()))


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
    except (TypeError, KeyError, AttributeError, ValueError) as error:
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
        tuned=None if tune.get("path") is None else str(tune["path"]),
        choices=tuple(Choice(dict(one["settings"]), one["value"]) for one in tune.get("chosen") or ()),
    )


def _point(point: Mapping[str, Any], common: Mapping[str, Any] | None) -> Point:
    own = point.get("config")
    config = None if common is None or own is None else {**common, **own}
    if not FOLDER.fullmatch(str(point["id"])):
        raise ValueError(f"{point['id']!r:.80} (a name of a folder)")
    return Point(str(point["id"]), dict(point["settings"]), point.get("seed"), config)


def _found(path: Path) -> Iterator[tuple[Path | None, SweepFile | None]]:
    """Run folders and plans that a path leads to, in the order of their names."""
    if path.is_file() and path.name.endswith(ENDING):
        sweep = read_sweep(path)
        yield None, sweep
        for point in sweep.points:
            for folder in (path.parent / point.id, path.parent / f"{point.id}{RUNNING}"):
                if is_run(folder):
                    yield folder, None
                    break
    elif is_run(path):
        yield path, None
    elif path.is_dir():
        yield from _below(path, DEPTH)
    elif path.exists():
        raise ResultsError(f"{path} should be a folder, or the {ENDING} of a sweep. It is another file.")
    else:
        raise ResultsError(f"{path} should be the folder of a run. There is no such folder.")


def _below(path: Path, depth: int) -> Iterator[tuple[Path | None, SweepFile | None]]:
    """Run folders and plans in a folder and in those below it; the folder of a run is not searched."""
    with os.scandir(path) as entries:
        inner = sorted(entry.path for entry in entries if not entry.name.startswith("."))
    for one in map(Path, inner):
        if one.name.endswith(ENDING) and one.is_file():
            yield None, read_sweep(one)
        elif one.is_dir():
            if is_run(one):
                yield one, None
            elif depth > 1:
                yield from _below(one, depth - 1)


def _check(runs: Iterable[Run]) -> None:
    problems: list[str] = []
    for run in runs:
        try:
            run.check()
        except ResultsError as error:
            problems.append(str(error))
    if problems:
        more = [f"{len(problems) - SHOWN} more runs are damaged."] if len(problems) > SHOWN else []
        raise ResultsError("\n".join([*problems[:SHOWN], *more]))


def _note_versions(runs: Iterable[Run], note: Note) -> None:
    """Say once that there are runs of other versions: what they have in common with ours is read."""
    others: dict[str, list[Run]] = {}
    for run in runs:
        version = run.manifest.get("varangian")
        if version is not None and version != varangian.__version__:
            others.setdefault(str(version), []).append(run)
    for version, made in others.items():
        note(
            f"{_runs(made)} made by varangian {version}, and this is {varangian.__version__}: "
            "numbers of two versions may differ."
        )


def _runs(made: Sequence[Run]) -> str:
    return f"{made[0].folder} was" if len(made) == 1 else f"{len(made)} runs, as {made[0].folder}, were"
