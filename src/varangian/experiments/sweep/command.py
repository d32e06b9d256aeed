"""`varangian sweep`: run every point of a grid."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from varangian.cli.commands.run import quote
from varangian.cli.main import FAILED, OK, CommandError
from varangian.cli.views.terminal import align
from varangian.config.overrides import Assignment, from_command_line, from_environment
from varangian.experiments.results.run import ResultsError
from varangian.experiments.sweep.byzfl import Translation, read_byzfl
from varangian.experiments.sweep.engines.choice import QUEUES, Engine
from varangian.experiments.sweep.engines.choice import engine as make_engine
from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.pace import duration, pace_of_finished
from varangian.experiments.sweep.plan import MOST_POINTS, LeftOut, Plan, label, make_plan
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.progress import Outcome
from varangian.experiments.sweep.sweep import SweepResult, run_sweep, usable_cores
from varangian.experiments.sweep.view import SweepView, sweep_view
from varangian.launch import RunError
from varangian.registry import ConfigError, Problem

LABELS = 5
"""Points that are named beside one reason; of more, the number is told."""


def command(args: argparse.Namespace) -> int:
    """Run every point of a grid that has no run yet."""
    translation = translate(args)
    if translation is not None and args.write is not None:
        write_grid(Path(args.write), translation)
        print(
            f"{args.write}: the grid, with notes on what is different. Next: varangian sweep {args.write}"
        )
        return OK
    plan = make_plan(read_grid(args, translation), most=None if args.yes else MOST_POINTS)
    jobs, engine = args.jobs or usable_cores(), chosen_engine(args)
    with sweep_view(args.format) as view:
        for sentence in () if translation is None else translation.notes:
            view.note(f"note: {sentence}")
        for sentence in describe_left_out(plan):
            view.note(sentence)
        try:
            if args.dry_run:
                if engine is not None:
                    jobs = args.jobs or 1
                where = "" if engine is None else engine.title
                view.finish([*describe_dry_run(plan, jobs, where)], facts_of_plan(plan, jobs))
                return OK
            result = run_sweep(plan, jobs=jobs, view=view, engine=engine)
        except RunError as error:
            raise CommandError(str(error)) from error
        if engine is not None and engine.detach and result.missing and result.interruption is None:
            view.finish([*_handed_over(result, engine)], _facts(result))
            return OK
        finish(view, result)
    if result.interruption is not None:
        raise result.interruption
    return FAILED if result.failed else OK


def read_grid(args: argparse.Namespace, translation: Translation | None) -> GridFile:
    """The grid of the command line, with the settings and options that are typed beside it."""
    if translation is None:
        grid = GridFile.read(args.config, overrides(args))
    else:
        grid = GridFile.of(translation.grid, overrides=overrides(args))
    return grid if args.seeds is None else grid.with_seeds(range(1, args.seeds + 1))


def chosen_engine(args: argparse.Namespace) -> Engine | None:
    """The engine that carries the runs out; None where this machine does.

    Raises:
        ConfigError: an option is given that is for engines alone.
    """
    if args.engine is None:
        options = {"--per-task": args.per_task, "--detach": args.detach or None}
        options["--slurm-options"] = args.slurm_options
        options["--kubernetes-options"] = args.kubernetes_options
        rule, hint = (
            "is for a sweep on an engine",
            f"Add {', '.join(f'--{name}' for name in QUEUES)}, or leave it out.",
        )
        if problems := [
            Problem(name, rule, hint=hint) for name, value in options.items() if value is not None
        ]:
            raise ConfigError(problems)
        return None
    options_of = {"slurm": args.slurm_options, "kubernetes": args.kubernetes_options}
    return make_engine(
        args.engine,
        options_of.get(args.engine) or "",
        per_task=args.per_task or 1,
        limit=args.jobs,
        detach=args.detach,
    )


def translate(args: argparse.Namespace) -> Translation | None:
    """The translation of a file of ByzFL, if one is given in place of a grid."""
    if (args.config is None) == (args.from_byzfl is None):
        rule = "should be given once: GRID.yaml, or --from-byzfl CONFIG.json"
        raise ConfigError([Problem("the grid", rule)])
    if args.from_byzfl is None:
        if args.write is not None:
            raise ConfigError([Problem("--write", "writes the grid of --from-byzfl, which is not given")])
        return None
    return read_byzfl(args.from_byzfl)


def write_grid(path: Path, translation: Translation) -> None:
    """Write the grid of a translation, where no file is.

    Raises:
        CommandError: there is one, or it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(translation.as_yaml())
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def overrides(args: argparse.Namespace) -> list[Assignment]:
    """Settings of all runs: of the environment, of the command line, of options that are short for one."""
    short = [] if args.output is None else [f"output={quote(args.output)}"]
    return [*from_environment(os.environ), *from_command_line([*args.settings, *short])]


def describe_left_out(plan: Plan) -> Iterator[str]:
    """Points without runs, those with one reason together."""
    yield from (f"note: {note}" for note in plan.notes)
    for what, points in (("excluded", plan.excluded), ("impossible", plan.impossible)):
        reasons: dict[str, list[LeftOut]] = {}
        for point in points:
            reasons.setdefault(point.reason, []).append(point)
        for reason, members in reasons.items():
            names = "; ".join(label(point.settings) for point in members[:LABELS])
            more = f"; and {len(members) - LABELS} more" if len(members) > LABELS else ""
            yield f"{what}: {names}{more}: {reason}"


def describe_dry_run(plan: Plan, jobs: int, engine: str = "") -> Iterator[str]:
    """The points, which of them are done, and the time that the others will take.

    Args:
        plan: the points.
        jobs: runs at the same time.
        engine: the name of an engine that carries them out, for people.
    """
    folders = RunFolders(plan.output)
    for point in plan.points:
        yield f"{point.id}  {'done' if folders.is_complete(point.id) else 'to run'}  {point.label}"
    facts = facts_of_plan(plan, jobs)
    seconds = facts["seconds"]
    how = f"with {jobs} job{'s' * (jobs > 1)}"
    to_run = f"{facts['to_run']} to run {f'in {engine} ' if engine else ''}{how}"
    yield f"{facts['points']} points, {facts['done']} of them done, {to_run}"
    if seconds is None and facts["to_run"]:
        yield f"no estimate: no run like these is finished in {plan.output}; --dry-run again when some are"
    elif facts["to_run"]:
        yield f"estimate: {duration(seconds)}, from {facts['finished']} finished runs"


def facts_of_plan(plan: Plan, jobs: int) -> dict[str, Any]:
    """The same for programs."""
    folders = RunFolders(plan.output)
    missing = [point for point in plan.points if not folders.is_complete(point.id)]
    pace = pace_of_finished(plan)
    rounds = sum(point.config.rounds for point in missing)
    return {
        "points": len(plan.points),
        "done": len(plan.points) - len(missing),
        "to_run": len(missing),
        "excluded": len(plan.excluded),
        "impossible": len(plan.impossible),
        "seconds": pace.seconds_for(rounds, max(1, min(jobs, len(missing)))),
        "finished": pace.runs,
    }


def finish(view: SweepView, result: SweepResult) -> None:
    """The end of a sweep on the screen."""
    view.finish([*_last_lines(result)], _facts(result))


def _last_lines(result: SweepResult) -> Iterator[str]:
    yield f"{len(result.outcomes)} of {len(result.plan.points)} runs done, {result.carried_out} of them now"
    if result.failed:
        yield f"{len(result.failed)} failed:"
        yield from _by_reason(result.failed)
    if result.early:
        yield f"{len(result.early)} ended before their last round, and count with the score that they had:"
        yield from _by_reason(result.early)
    if result.missing:
        yield f"{result.missing} runs are missing: type the command again, and it does them"
    if path := result.plan.grid.tune:
        yield ""
        yield f"{path}, by the worst case over attacks on the validation split:"
        yield from align(("  " + rule, value, score) for rule, value, score in _chosen(result, path))
    yield ""
    try:
        yield from result.table().splitlines()
    except ResultsError as error:
        yield f"no table: {error}"
    yield ""
    yield f"the report: varangian report {shlex.quote(str(result.plan.file))}"


def _handed_over(result: SweepResult, engine: Engine) -> Iterator[str]:
    yield f"{len(result.outcomes)} of {len(result.plan.points)} runs done, {engine.title} has the others"
    yield "the same command without --detach waits for them, and shows what has come of them"


def _by_reason(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Runs with one reason together."""
    reasons: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        reasons.setdefault(outcome.short_reason, []).append(outcome)
    for reason, members in reasons.items():
        yield f"  {reason}"
        yield from align((f"    {one.point.label}", one.point.id) for one in members)


def _chosen(result: SweepResult, path: str) -> list[tuple[str, str, str]]:
    nothing = ("", "nothing is chosen", "runs are missing" if result.missing else "no run has a score")
    return [choice.row(path) for choice in result.choices] or [nothing]


def _facts(result: SweepResult) -> dict[str, Any]:
    return {
        "points": len(result.plan.points),
        "done": len(result.outcomes),
        "early": len(result.early),
        "failed": len(result.failed),
        "missing": result.missing,
        "carried_out": result.carried_out,
        "seconds": result.seconds,
        "chosen": [choice.plain() for choice in result.choices],
        "file": str(result.plan.file),
    }
