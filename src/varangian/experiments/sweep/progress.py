"""The progress of a sweep: runs that are over, runs in hand, the time left; and who is shown it."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal, Protocol

from varangian.cli.views.summary import number, percent
from varangian.experiments.sweep.pace import Pace, duration
from varangian.experiments.sweep.plan import Plan, Point

REASON = 160
"""Characters of a reason on the screen; all of it is in the run folder."""
State = Literal["finished", "early", "failed"]
"""finished: all rounds are done; early: it ended before, as when its model diverged, and has a result;
failed: it ended on an error."""


@dataclass(frozen=True)
class Outcome:
    """A run that is over."""

    point: Point
    state: State
    result: dict[str, Any] | None
    """As in result.json; None of a run that ended on an error."""
    reason: str = ""
    """Why it is not finished, as a sentence."""
    seconds: float | None = None
    """That its process took; None of a run that another sweep has carried out."""

    @property
    def short_reason(self) -> str:
        """The first clause of the reason."""
        return shorten(self.reason.partition("; ")[0].partition(". ")[0], REASON)

    @property
    def accuracy(self) -> float | None:
        return None if self.result is None else self.result.get("accuracy")

    @property
    def loss(self) -> float | None:
        return None if self.result is None else self.result.get("loss")


@dataclass
class Progress:
    """How far a sweep is."""

    plan: Plan
    jobs: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the identity of the run."""
    found: int = 0
    """Runs that were complete before."""
    running: dict[str, float] = field(default_factory=dict)
    """Runs in hand, and when each was started, by a monotonic clock."""
    rounds: dict[str, int] = field(default_factory=dict)
    """How far each of these is."""
    engine: str = ""
    """The engine that has the runs, for people; empty where they are processes of this sweep."""
    waiting: set[str] = field(default_factory=set)
    """Runs that the engine has, and has not begun."""
    elsewhere: set[str] = field(default_factory=set)
    """Runs that another sweep carries out."""
    earlier: Pace = field(default_factory=Pace)
    """Of runs that were complete before; without the start and the end of their processes."""
    pace: Pace = field(default_factory=Pace)
    """Of the runs that ended in this sweep."""

    @property
    def early(self) -> int:
        return sum(outcome.state == "early" for outcome in self.outcomes.values())

    @property
    def failed(self) -> int:
        return sum(outcome.state == "failed" for outcome in self.outcomes.values())

    @property
    def seconds_left(self) -> float | None:
        """The time left, from the pace so far."""
        over = self.outcomes.keys() | self.elsewhere
        rounds = {point.id: point.config.rounds for point in self.plan.points if point.id not in over}
        left = sum(total - self.rounds.get(id, 0) for id, total in rounds.items())
        pace = self.pace if self.pace.runs else self.earlier
        jobs = len(self.running) if self.engine else self.jobs
        return pace.seconds_for(left, max(1, min(jobs, len(rounds))))


class View(Protocol):
    """Shows a sweep while it runs."""

    def begin(self, progress: Progress) -> None: ...
    def note(self, text: str) -> None: ...
    def ended(self, progress: Progress, outcome: Outcome) -> None: ...
    def update(self, progress: Progress) -> None:
        """Something has happened, or time has passed."""
        ...


def counts(progress: Progress) -> str:
    """`12 of 90 runs done, 2 running, 0 failed`."""
    parts = [f"{len(progress.outcomes)} of {len(progress.plan.points)} runs done"]
    parts += [f"{len(progress.running)} running"] if progress.running else []
    parts += [f"{len(progress.waiting)} waiting in {progress.engine}"] if progress.waiting else []
    parts += [f"{len(progress.elsewhere)} in another sweep"] if progress.elsewhere else []
    parts += [f"{progress.early} ended early"] if progress.early else []
    parts += [f"{progress.failed} failed"] if progress.failed else []
    return ", ".join(parts)


def found(progress: Progress) -> str:
    """The line before the first run."""
    points = len(progress.plan.points)
    missing = points - progress.found
    left = f"; time left: {duration(progress.seconds_left)}" if progress.earlier.runs and missing else ""
    done = f"{points} point{'s' * (points != 1)}, {progress.found} of them done before"
    jobs = f"with {progress.jobs} job{'s' * (progress.jobs != 1)}"
    how = f"in {progress.engine}" if progress.engine else jobs
    return f"{done}, {missing} to run {how}{left}"


def score(outcome: Outcome) -> str:
    """How a run ended: its accuracy or loss, and why it is not finished."""
    if outcome.state == "failed":
        return f"failed: {outcome.short_reason}"
    value = f"accuracy {percent(outcome.accuracy)}"
    if outcome.accuracy is None:
        value = f"loss {number(outcome.loss)}"
    return value if outcome.state == "finished" else f"{value}, ended early: {outcome.short_reason}"


class Silent:
    """A view that shows nothing."""

    def begin(self, progress: Progress) -> None:
        del progress

    def note(self, text: str) -> None:
        del text

    def ended(self, progress: Progress, outcome: Outcome) -> None:
        del progress, outcome

    def update(self, progress: Progress) -> None:
        del progress
