"""Confirmation of attacks by trainings: runs of a sweep, so that what is there is not done again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.plan import Plan, Point, make_plan, short
from varangian.experiments.sweep.processes.job import Job
from varangian.experiments.sweep.processes.runner import Event, ForkingRunner, Runner
from varangian.experiments.sweep.progress import Outcome
from varangian.experiments.sweep.sweep import run_sweep, write_index
from varangian.launch.simulation.workers import STALLED

ATTACK = "byzantine.attack"
WAITS = STALLED.partition("{round}")[2].partition(":")[0]
"""A part of the reason of a run that cannot go on because attackers are silent."""


@dataclass(frozen=True)
class Trained:
    """An attack, and what trainings under it came to; no attack is None."""

    attack: Any
    """As `byzantine.attack` takes it."""
    accuracies: tuple[float, ...]
    """At the end, one for each seed; empty where samples have no classes."""
    losses: tuple[float, ...]

    @property
    def accuracy(self) -> float | None:
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def loss(self) -> float:
        return fmean(self.losses)

    @property
    def strength(self) -> tuple[float, float]:
        """By which attacks are compared: by the accuracy, and where that is equal or missing, the loss."""
        return (0.0 if self.accuracy is None else -self.accuracy, self.loss)

    @property
    def name(self) -> str:
        return "no attack" if self.attack is None else short(self.attack)

    def plain(self) -> dict[str, Any]:
        return {
            "attack": self.attack,
            "accuracy": self.accuracy,
            "accuracies": [*self.accuracies],
            "loss": self.loss if math.isfinite(self.loss) else None,
        }


class Trainings:
    """Trainings under attacks, all with the same other settings.

    A context manager, which keeps the process that starts them.

    Args:
        base: resolved settings of every run.
        folder: of the run folders, and of the indices of the sweeps.
        jobs: runs at the same time.
        over: asked between runs whether the time is up.
        told: takes a line about each attack that is over.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        folder: Path,
        *,
        jobs: int,
        over: Callable[[], bool],
        told: Callable[[str, Trained], None],
    ) -> None:
        self._base = {**base, "output": str(folder), "trackers": None}
        self._folder, self._jobs = folder, jobs
        self.over, self._told = over, told
        """`over` is asked between runs whether the time is up."""
        self._stack = contextlib.ExitStack()
        self._runner: Runner | None = None
        self.refused = dict[str, str]()
        """Attacks that cannot be mounted, by name, and why."""
        self.stopping = dict[str, str]()
        """Attacks whose silence ends a training, by name, and how it ended."""
        self.runs = 0
        """Runs that are over, with those that were there."""
        self.indices = dict[str, Path]()
        """The indices of the sweeps, of which `varangian report` makes pages, by name."""

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def train(
        self, name: str, attacks: Sequence[Any], *, rounds: int, seeds: Sequence[int], at_least: int = 1
    ) -> list[Trained]:
        """Train under each attack; what is over when the time is up.

        Args:
            name: of the sweep.
            attacks: as `byzantine.attack` takes them; None is no attack.
            rounds: of each run.
            seeds: of the runs of each attack.
            at_least: so many of the attacks are done, whatever the time.
        """
        plan = self._plan(name, attacks, rounds, seeds)
        if plan is None:
            return []
        by_attack = dict[str, list[Point]]()
        for point in plan.points:
            by_attack.setdefault(repr(point.settings[ATTACK]), []).append(point)
        groups, done, found = [*by_attack.values()], list[Point](), list[Trained]()
        width = max(1, self._jobs // len(seeds))
        for start in range(0, len(groups), width):
            if start >= at_least and self.over():
                break
            chosen = groups[start : start + width]
            done += [point for group in chosen for point in group]
            outcomes = self._run(replace(plan, points=tuple(p for group in chosen for p in group)))
            for group in chosen:
                attack, ends = group[0].settings[ATTACK], [outcomes[p.id] for p in group]
                if waiting := [end.short_reason for end in ends if WAITS in end.reason]:
                    self.stopping[short(attack)] = waiting[0]
                    continue
                trained = _trained(attack, ends)
                if trained is not None:
                    found.append(trained)
                    self._told(name, trained)
        write_index(replace(plan, points=tuple(done)))
        self.indices[name] = plan.file
        return found

    def _plan(self, name: str, attacks: Sequence[Any], rounds: int, seeds: Sequence[int]) -> Plan | None:
        base = {**self._base, "rounds": rounds}
        cases = [{ATTACK: attack} for attack in attacks]
        if not cases:
            return None
        grid = GridFile.of({"name": name, "base": base, "cases": cases, "seeds": [*seeds]})
        plan = make_plan(grid)
        self.refused |= {short(left.settings[ATTACK]): left.reason for left in plan.impossible}
        return plan

    def _run(self, plan: Plan) -> dict[str, Outcome]:
        result = run_sweep(plan, jobs=self._jobs, make_runner=self._kept)
        if result.interruption is not None:
            raise result.interruption
        self.runs += len(result.outcomes)
        return {outcome.point.id: outcome for outcome in result.outcomes}

    def _kept(self) -> Runner:
        if self._runner is None:
            self._runner = self._stack.enter_context(ForkingRunner())
        return _Kept(self._runner)


@dataclass(frozen=True)
class _Kept:
    """A runner that outlasts a sweep."""

    runner: Runner

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def start(self, job: Job) -> None:
        self.runner.start(job)

    def events(self, seconds: float) -> Iterator[Event]:
        return self.runner.events(seconds)


def _trained(attack: Any, outcomes: Sequence[Outcome]) -> Trained | None:
    """The scores under an attack; None where a run has ended on an error."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if len(results) < len(outcomes):
        return None
    scores = [result.get("accuracy") for result in results]
    accuracies = tuple(float(score) for score in scores if score is not None)
    losses = (result.get("loss") for result in results)
    return Trained(
        attack,
        accuracies if len(accuracies) == len(scores) else (),
        tuple(math.inf if loss is None else float(loss) for loss in losses),
    )
