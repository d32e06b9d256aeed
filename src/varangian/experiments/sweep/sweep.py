"""Carrying a plan out: what is missing is run, what is there is read; and what came of it."""

from __future__ import annotations

import contextlib
import html
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from varangian.experiments.results.read import read_runs
from varangian.experiments.results.run import ResultsError
from varangian.experiments.results.study import Study
from varangian.experiments.results.tables import plain
from varangian.experiments.sweep.engines.batch import FOLDER
from varangian.experiments.sweep.engines.choice import Engine
from varangian.experiments.sweep.pace import pace_of_finished
from varangian.experiments.sweep.plan import Plan
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.processes.forker import Round
from varangian.experiments.sweep.processes.job import Ending, Job
from varangian.experiments.sweep.processes.runner import ForkingRunner, Remark, Runner
from varangian.experiments.sweep.progress import Outcome, Progress, Silent, View
from varangian.experiments.sweep.tune import Choice, choose
from varangian.files import user_path, write_atomically
from varangian.launch import RunError, RunResult
from varangian.registry import ConfigError
from varangian.trackers import missing_packages

POLL = 0.25
"""Seconds between two looks at what has happened."""
LOOK = 1.0
"""Seconds between two looks at runs that another sweep carries out."""


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The result of a sweep."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    """In the order of the points; fewer than those if it was interrupted."""
    seconds: float
    carried_out: int
    """Runs that this sweep did itself; the others were there, or came from another sweep."""
    interruption: KeyboardInterrupt | None = None
    choices: tuple[Choice, ...] = ()
    """The values that were chosen, in a sweep that tunes a setting."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def early(self) -> tuple[Outcome, ...]:
        """Runs that ended before their last round; their scores count."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "early")

    @property
    def missing(self) -> int:
        """Points without a run that is over."""
        return len(self.plan.points) - len(self.outcomes)

    def study(self) -> Study:
        """The runs as a study, with the values that were chosen.

        Raises:
            ResultsError: no run is finished.
        """
        return Study.of(read_runs([self.plan.file]))

    def table(self) -> str:
        """The table of worst cases as lines of text.

        Raises:
            ResultsError: no run is finished.
        """
        return plain(self.study().worst_cases())

    @cached_property
    def runs(self) -> list[RunResult]:
        """The results of the runs that are over, in the order of the points; without those that crashed."""
        folders = (self.plan.output / outcome.point.id for outcome in self.outcomes if outcome.result)
        return [RunResult.of(folder) for folder in folders]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point that is over: its settings and its seed, how it ended, and its scores."""
        return [
            {
                **outcome.point.settings,
                "seed": outcome.point.seed,
                "state": outcome.state,
                **{name: (outcome.result or {}).get(name) for name in ("accuracy", "loss", "train_loss")},
                **((outcome.result or {}).get("metrics") or {}),
                "folder": str(self.plan.output / outcome.point.id),
            }
            for outcome in self.outcomes
        ]

    def report(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Write the report of the sweep, and return where it is.

        Raises:
            ResultsError: no run is finished.
            MissingLibraryError: the extra `report` is not installed.
            OSError: the file cannot be written.
        """
        from varangian.experiments.report.page import write_page

        file = user_path(path)
        write_page(read_runs([self.plan.file]), file)
        return file

    def __repr__(self) -> str:
        counts = f"{len(self.outcomes)} of {len(self.plan.points)} runs done, {len(self.failed)} failed"
        return f"SweepResult({counts}, file {str(self.plan.file)!r})"

    def _repr_html_(self) -> str:
        """The table of worst cases, for notebooks."""
        with contextlib.suppress(ResultsError):  # no run is finished
            return f"<pre>{html.escape(self.table())}</pre>"
        return f"<pre>{html.escape(repr(self))}</pre>"


def run_sweep(
    plan: Plan,
    *,
    jobs: int | None = None,
    view: View | None = None,
    engine: Engine | None = None,
    make_runner: Callable[[], Runner] = ForkingRunner,
    command: Sequence[str] | None = None,
) -> SweepResult:
    """Run every point of a plan that has no run yet.

    Ctrl-C ends the sweep; nothing is left of the runs in hand, which the same sweep does again later.

    Args:
        plan: the points.
        jobs: runs at the same time; by default as many as this process may use cores. An engine has its
            own limit.
        view: is told of everything.
        engine: carries the runs out in place of processes of this one.
        make_runner: what carries the runs out where no engine does.
        command: that started the sweep, for the manifests; by default that of this process.

    Raises:
        ConfigError: the package of a tracker is missing.
        RunError: a run folder is of another version or cannot be written; nothing is overwritten.
    """
    if problems := missing_packages(plan.points[0].config.trackers if plan.points else ()):
        raise ConfigError(problems)
    folders = RunFolders(plan.output)
    folders.check(point.id for point in plan.points)
    write_index(plan)
    told, typed = view or Silent(), tuple(command or sys.argv)
    if engine is None:
        result = _Sweep(plan, folders, jobs or usable_cores(), told, typed).run(make_runner)
    else:
        sweep = _Sweep(plan, folders, len(plan.points), told, typed, engine.title, engine.detach)
        result = sweep.run(lambda: engine.runner(plan.output, plan.grid.name))
    if plan.grid.tune is None or result.missing:
        return result
    result = replace(result, choices=choose(plan.grid.tune, result.outcomes))
    write_index(plan, result.choices)
    return result


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_index(plan: Plan, choices: Sequence[Choice] = ()) -> None:
    """Write the index of a sweep, with what was chosen.

    Raises:
        RunError: it cannot be written.
    """
    path = plan.grid.tune
    tune = None if path is None else {"path": path, "chosen": [choice.plain() for choice in choices]}
    content = plan.plain() | {"tune": tune if choices else None}
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
        write_atomically(plan.file, (json.dumps(content, indent=1, default=str) + "\n").encode())
    except OSError as error:
        reason = f"{plan.file} cannot be written: {error.strerror or error}"
        raise RunError(f"{reason}. Choose another folder with --output DIR.") from error


class _Sweep:
    """One sweep while it runs."""

    def __init__(
        self,
        plan: Plan,
        folders: RunFolders,
        jobs: int,
        view: View,
        command: tuple[str, ...],
        engine: str = "",
        detach: bool = False,
    ) -> None:
        self._plan, self._folders, self._view, self._command = plan, folders, view, command
        self._points = {point.id: point for point in plan.points}
        self._progress = Progress(plan, jobs, earlier=pace_of_finished(plan), engine=engine)
        self._detach, self._said_elsewhere = detach, False
        self._todo = deque[str]()
        self._carried_out = 0
        self._look_at = 0.0

    def run(self, make_runner: Callable[[], Runner]) -> SweepResult:
        began, progress, interruption = time.monotonic(), self._progress, None
        # Every point with the first seed, then with the next one: a table soon has something in each cell.
        seeds = dict.fromkeys(point.seed for point in self._plan.points)
        order = {seed: place for place, seed in enumerate(seeds)}
        for id in sorted(self._points, key=lambda id: order[self._points[id].seed]):
            if self._folders.is_complete(id):
                progress.outcomes[id] = self._outcome(id)
            else:
                self._todo.append(id)
        progress.found = len(progress.outcomes)
        self._view.begin(progress)
        try:
            # An engine removes what an earlier sweep has left behind that was killed.
            if self._todo or (progress.engine and (self._plan.output / FOLDER).exists()):
                with make_runner() as runner:
                    self._work(runner)
        except KeyboardInterrupt as error:
            interruption = error
            for id in progress.running:
                self._folders.clear(id)
                if self._folders.is_complete(id):  # it has ended just now
                    progress.outcomes[id] = self._outcome(id)
        done = (progress.outcomes[id] for id in self._points if id in progress.outcomes)
        return SweepResult(
            self._plan, tuple(done), time.monotonic() - began, self._carried_out, interruption
        )

    def _work(self, runner: Runner) -> None:
        progress = self._progress
        while self._todo or progress.running or progress.waiting or progress.elsewhere:
            while self._todo and len(progress.running) + len(progress.waiting) < progress.jobs:
                self._start(runner, self._todo.popleft())
            for event in runner.events(0.0 if self._detach else POLL):
                if isinstance(event, Round):
                    self._hear(event)
                elif isinstance(event, Remark):
                    self._view.note(event.text)
                else:
                    self._end(event)
            if self._detach:
                return
            self._look_elsewhere()
            self._view.update(progress)

    def _start(self, runner: Runner, id: str) -> None:
        point = self._points[id]
        settings = point.config.resolved()
        checkpoint = settings["server"]["checkpoint"]
        if checkpoint is not None and checkpoint["every"] is None:
            settings["server"]["checkpoint"] = (
                None  # a run that was interrupted is short, and repeats itself
            )
        runner.start(Job(id, settings, self._plan.output.absolute(), self._command))
        if self._progress.engine:
            self._progress.waiting.add(id)
        else:
            self._progress.running[id] = time.monotonic()

    def _hear(self, told: Round) -> None:
        progress = self._progress
        if told.id in progress.waiting:
            progress.waiting.remove(told.id)
            progress.running[told.id] = time.monotonic()
        progress.rounds[told.id] = told.rounds

    def _end(self, ending: Ending) -> None:
        progress, now = self._progress, time.monotonic()
        began = progress.running.pop(ending.id, now)
        seconds = now - began if ending.seconds is None else ending.seconds
        progress.rounds.pop(ending.id, None)
        progress.waiting.discard(ending.id)
        if ending.kind == "taken":
            if not self._said_elsewhere:
                self._said_elsewhere = True
                self._view.note("another sweep carries some of these runs out; this one takes what is left")
            progress.elsewhere.add(ending.id)
        elif ending.kind == "interrupted":
            self._todo.append(ending.id)  # by a signal to its process alone
        else:
            self._carried_out += ending.kind != "found"
            self._close(self._outcome(ending.id, ending.error, seconds))

    def _close(self, outcome: Outcome) -> None:
        progress = self._progress
        progress.outcomes[outcome.point.id] = outcome
        if outcome.result is not None and outcome.seconds is not None:
            progress.pace.add(outcome.result.get("rounds", 0), outcome.seconds)
        self._view.ended(progress, outcome)

    def _look_elsewhere(self) -> None:
        """See what has become of the runs of other sweeps."""
        if not self._progress.elsewhere or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK
        for id in [*self._progress.elsewhere]:
            if self._folders.is_running(id):
                continue
            self._progress.elsewhere.remove(id)
            if self._folders.is_complete(id):
                self._close(self._outcome(id))
            else:
                self._todo.append(id)

    def _outcome(self, id: str, error: str = "", seconds: float | None = None) -> Outcome:
        """The outcome of a run, from its folder."""
        result = None if error else self._folders.result(id)
        if result is None:
            reason = error or self._folders.error(id) or "its result cannot be read"
            return Outcome(self._points[id], "failed", None, reason, seconds)
        if result.get("outcome") == "finished":
            return Outcome(self._points[id], "finished", result, "", seconds)
        return Outcome(self._points[id], "early", result, str(result.get("reason", "")), seconds)
