"""Runs, sweeps, reports and advice for programs: `varangian.run`, `varangian.sweep` and the like.

They read settings as the command line does, and take Python objects in their place. `varangian` imports
this on first use; nothing else does.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from varangian.aggregators import MIXINGS, RULES, Aggregator, spec_of
from varangian.cli.arguments.common import FORMATS
from varangian.cli.views.progress import progress
from varangian.config import RunConfig, advice, loads
from varangian.config.overrides import Assignment, apply_overrides
from varangian.config.settings import groups
from varangian.config.yaml_text import read as read_settings
from varangian.files import user_path
from varangian.launch import Note, RunError, RunResult
from varangian.launch import run as run_config
from varangian.launch.checkpoints.resume import RunOver, find_run, settings_of
from varangian.launch.checkpoints.resume import resume as go_on
from varangian.launch.checkpoints.resumed import Resumed
from varangian.own_classes import target_of, target_of_function
from varangian.registry import ConfigError, Problem, Registry, is_target, join
from varangian.server.participation import PARTICIPATION
from varangian.trackers import TRACKERS
from varangian.worker.attacks import ATTACKS
from varangian.worker.data import DATASETS
from varangian.worker.data.partition import PARTITIONS
from varangian.worker.simulation.availability import AVAILABILITY
from varangian.worker.simulation.delays import DELAYS
from varangian.worker.training.losses import LOSSES
from varangian.worker.training.metrics import METRICS
from varangian.worker.training.models import MODELS

if TYPE_CHECKING:
    from varangian.experiments.advice.advice import Advice
    from varangian.experiments.sweep.sweep import SweepResult
    from varangian.server.observability.record import Observe, RoundRecord

Config = str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None
"""A file, settings by name, a configuration, or every setting with its default."""
Grid = str | os.PathLike[str] | Mapping[str, Any]
"""A grid file, or its content."""
REGISTRIES: tuple[Registry[Any], ...] = (
    *(RULES, MIXINGS, ATTACKS, PARTITIONS, METRICS, MODELS, DATASETS, LOSSES),
    *(PARTICIPATION, AVAILABILITY, DELAYS, TRACKERS),
)
"""The registries whose objects may stand in the place of their names."""
MAIN = "__main__"


def run(
    config: Config = None,
    /,
    *,
    observe: Observe | None = None,
    note: Note | None = None,
    folder: str | os.PathLike[str] | None = None,
    format: str | None = None,
    resume: str | os.PathLike[str] | Literal[True] | None = None,
    force: bool = False,
    **settings: Any,
) -> RunResult:
    """Train with a server and workers on this machine, and return when it is over.

    This is `varangian run` for programs and notebooks. Where an event loop runs already, the run has one of
    its own in another thread, and this function waits for it. The first Ctrl-C ends the run after the round
    in hand, in a notebook too; in a thread that is not the main one no signal is handled.

    Args:
        config: a YAML file; a mapping of settings, whose keys may be paths as `"optimizer.lr"`; what
            `varangian.config.load` returns; or None, where every setting has its default.
        observe: called with the record of every round; the run folder holds them, too. In a run that was
            called from inside an event loop it is called in another thread.
        note: takes sentences about the run, as that a worker has ended; by default they are logged as
            warnings of the logger `varangian`.
        folder: the run folder, which is made and must be empty if it exists; by default a new one below
            the setting `output`.
        format: shows progress as the command does: auto, rich, plain or json; by default nothing is
            printed.
        resume: go on with the run in this folder, whose settings stand in the place of those that are not
            given; True is the newest run with these settings below `output` that has rounds left, and a new
            one where there is none. A run that is over is not carried on: its result is returned.
        force: with `resume`, as `--force`.
        settings: more settings, which win: `rounds=50`, `optimizer__lr=0.1` for `optimizer.lr`. A rule, an
            attack or a model may be an object, a class or a function in place of its name.

    Raises:
        ConfigError: with every problem found in the settings.
        RunError: the run cannot be started, or cannot go on.
    """
    check_format(format)
    if resume is not None and folder is not None:
        raise RunError("a run that goes on does so in its own folder: give `resume` or `folder`")
    found = user_path(resume) if isinstance(resume, str | os.PathLike) else None
    if found is not None and config is None:
        config = settings_of(found, whole=True)
    chosen = configuration(config, settings)
    if resume is True:
        found = find_run(chosen)
    say = note or logging.getLogger("varangian").warning
    for sentence in advice(chosen):
        say(sentence)
    if found is None:
        return _carry_out(
            chosen, observe, note, format, folder=None if folder is None else user_path(folder)
        )
    try:
        chosen, resumed = go_on(chosen, found, say, force=force)
    except RunOver:
        return read(found)
    return _carry_out(chosen, observe, note, format, resume=resumed)


def _carry_out(
    chosen: RunConfig,
    observe: Observe | None,
    note: Note | None,
    format: str | None,
    folder: Path | None = None,
    resume: Resumed | None = None,
) -> RunResult:
    """Carry a run out, and show it if there is a format."""
    if format is None:
        return run_config(chosen, observe=observe, note=note, folder=folder, resume=resume)
    with progress(format, chosen.rounds, chosen.byzantine_names, declared=chosen.f) as shown:

        def both(record: RoundRecord) -> None:
            shown.round(record)
            if observe is not None:
                observe(record)

        result = run_config(chosen, observe=both, note=note or shown.note, folder=folder, resume=resume)
    shown.finish(result)
    return result


def sweep(
    grid: Grid,
    /,
    *,
    jobs: int | None = None,
    seeds: int | None = None,
    format: str | None = None,
    engine: str | None = None,
    engine_options: str = "",
    **settings: Any,
) -> SweepResult:
    """Run every point of a grid that has no run yet, and return when all are over.

    This is `varangian sweep` for programs and notebooks. Each run has a process of its own; the same sweep
    again only does what is missing. Ctrl-C ends it, and the result has what is done until then.

    Args:
        grid: a grid file, or a mapping as in one: `{"base": {...}, "grid": {"aggregator": [...]}}`.
        jobs: runs at the same time; by default as many as this process may use cores.
        seeds: as many seeds from 1 on, in place of those of the grid.
        format: shows progress as the command does: auto, rich, plain or json; by default nothing is
            printed.
        engine: that carries the runs out in place of this machine: slurm, kubernetes or ray.
        engine_options: for the engine, as for Slurm "--partition=short --time=30".
        settings: of every run, as for `run`.

    Raises:
        ConfigError: with every problem found in the grid.
        RunError: a run folder is of another version, or cannot be written.
    """
    from varangian.experiments.sweep.engines.choice import engine as make_engine
    from varangian.experiments.sweep.grid import GridFile
    from varangian.experiments.sweep.plan import make_plan
    from varangian.experiments.sweep.sweep import run_sweep
    from varangian.experiments.sweep.view import sweep_view

    check_format(format)
    more = [*assignments(settings)]
    if isinstance(grid, Mapping):
        content = dict(grid)
        if isinstance(content.get("base"), Mapping | RunConfig):
            content["base"] = base_settings(content["base"])
        made = GridFile.of(plain(content, ""), overrides=more)
    else:
        made = GridFile.read(user_path(grid), more)
    plan = make_plan(made if seeds is None else made.with_seeds(range(1, seeds + 1)))
    check_reachable(plan.grid.plain())
    with contextlib.nullcontext() if format is None else sweep_view(format) as view:
        chosen = None if engine is None else make_engine(engine, engine_options, limit=jobs)
        return run_sweep(plan, jobs=jobs, view=view, engine=chosen)


def check_format(format: str | None) -> None:
    """See that there is such a view of the progress.

    Raises:
        ConfigError: there is none.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError([Problem("format", f"should be one of {', '.join(FORMATS)}, or None", format)])


def read(folder: str | os.PathLike[str], /) -> RunResult:
    """The result of a run that is over, from its folder, with its history and its model.

    Raises:
        RunError: there is none.
    """
    return RunResult.of(folder)


def report(
    *runs: RunResult | SweepResult | str | os.PathLike[str], path: str | os.PathLike[str] = "report.html"
) -> Path:
    """Write one page about runs, as `varangian report`, and return where it is.

    Args:
        runs: results of runs and sweeps, or their folders and files.
        path: of the page.

    Raises:
        ResultsError: no run is finished, or one is damaged.
        MissingLibraryError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    from varangian.experiments.report.page import write_page
    from varangian.experiments.results.read import read_runs
    from varangian.experiments.sweep.sweep import SweepResult

    places = list[str | os.PathLike[str]]()
    for one in runs:
        place = one.plan.file if isinstance(one, SweepResult) else one
        if isinstance(place, RunResult):
            if place.folder is None:
                raise RunError("This run has no folder to read from.")
            place = place.folder
        places.append(place)
    file = user_path(path)
    write_page(read_runs(places), file)
    return file


def advise(
    config: Config = None,
    /,
    *,
    declared: int | None = None,
    parameters: int | None = None,
    threat: Literal["any", "labels"] = "any",
    **settings: Any,
) -> Advice:
    """The rule to use, and why, as `varangian advise`; what is not written counts as not known.

        print(varangian.advise(workers=15, f=3, partition={"dirichlet": {"alpha": 0.1}}))

    Args:
        config: as for `run`.
        declared: the f that the server would be told, if another than the setting `f`, which is how many
            workers may attack.
        parameters: numbers in the model, for the cost.
        threat: what attackers can do: `any` vectors, or `labels` that are wrong in an honest program.
        settings: more settings, which win, as for `run`.

    Raises:
        ConfigError: with every problem found; also where no rule stands so many attackers.
    """
    from varangian.experiments.advice.advice import advise as advise_about
    from varangian.experiments.advice.question import ask

    written = apply_overrides(base_settings(config), [*assignments(settings)], groups())
    return advise_about(ask(written, declared=declared, parameters=parameters, threat=threat))


def configuration(config: Config, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with more settings on top.

    Raises:
        ConfigError: with every problem found.
    """
    if isinstance(config, RunConfig) and not settings:
        found = config
    else:
        base, more = base_settings(config), [*assignments(settings)]
        found = loads(apply_overrides(base, more, groups()))
    script = getattr(sys.modules[MAIN], "__file__", None)
    if found.backend == "processes" and not (script and Path(script).is_file()):
        # A script is imported by every process of a run. Trackers are called in this one.
        check_reachable({name: value for name, value in found.resolved().items() if name != "trackers"})
    return found


def base_settings(config: Config) -> dict[str, Any]:
    """The settings in a file, in a mapping or in a configuration, as plain values.

    Raises:
        ConfigError: a value has no name that a configuration could have.
    """
    if config is None:
        return {}
    if isinstance(config, RunConfig):
        return config.resolved()
    if isinstance(config, str | os.PathLike):
        return read_settings(user_path(config))
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = type(config).__name__
        raise TypeError(f"`config` should be a file, a mapping of settings or a RunConfig. Found {found}.")
    written = {str(key): plain(value, str(key)) for key, value in config.items()}
    base = {key: value for key, value in written.items() if "." not in key}
    paths = [Assignment(key, value, key) for key, value in written.items() if "." in key]
    return apply_overrides(base, paths, groups())


def assignments(settings: Mapping[str, Any]) -> Iterator[Assignment]:
    """Keyword arguments as assignments: `optimizer__lr` is `optimizer.lr`."""
    for name, value in settings.items():
        path = name.replace("__", ".")
        yield Assignment(path, plain(value, path), name)


def plain(value: Any, path: str) -> Any:
    """A value as it stands in a file: objects, classes and functions become their names and settings.

    Raises:
        ConfigError: an object has no name.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, join(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, join(path, place)) for place, item in enumerate(value)]
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return value.item()  # a number of numpy or torch
    if isinstance(value, Aggregator):
        return spec_of(value)
    if inspect.isclass(value) or inspect.isroutine(value):
        return _name(value, path)
    for registry in REGISTRIES:
        with contextlib.suppress(KeyError):
            return registry.spec(value)
    return _name(value, path)


def _name(value: Any, path: str) -> str:
    """`module:name` of a class or a function.

    Raises:
        ConfigError: it is none, or not found under its name.
    """
    if callable(value):
        target = target_of(value) if inspect.isclass(value) else target_of_function(value)
        if target is not None:
            return target
        rule = "should be at the top of a module or a cell, under its own name"
        raise ConfigError([Problem(path, rule, getattr(value, "__qualname__", value))])
    rule = "should be a number, a text, a list, a mapping, or an object of a class that has a name here"
    raise ConfigError([Problem(path, rule, value)])


def check_reachable(settings: Mapping[str, Any]) -> None:
    """See that code of the user is found by other processes.

    Raises:
        ConfigError: it stands in a notebook or a script, or is typed at a prompt.
    """
    if names := sorted({*_in_main(settings)}):
        rule = f"{', '.join(names)} can be found in this process alone, and other processes need them"
        hint = "Write them to a file and import it; a single run may have backend='simulate'."
        raise ConfigError([Problem("", rule, hint=hint)])


def _in_main(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from (*_in_main(key), *_in_main(value))
    elif isinstance(settings, list):
        for value in settings:
            yield from _in_main(value)
    elif is_target(settings) and str(settings).startswith(f"{MAIN}:"):
        yield str(settings).partition(":")[2]
