"""Cases of a study: runs that differ in their seed alone, and their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from varangian.experiments.results.labels import NONE
from varangian.experiments.results.run import Run, State, finite

Vector: TypeAlias = NDArray[np.float64]
At: TypeAlias = Literal["final", "best"] | int
"""The evaluation that counts: the last; the best, in the round in which the mean over seeds is best, as
ByzFL has it; or the mean of the last k."""
Better: TypeAlias = Literal["higher", "lower"]
LOWER = ("loss", "error", "mae", "attack_success", "backdoor_success")
"""Ends of the names of scores of which less is better."""


@dataclass(frozen=True)
class Gap:
    """A run of a case that has no score, or one from before its last round, and why."""

    seed: str
    state: State
    reason: str
    """As a sentence, perhaps with text from workers in it."""
    run: Run | None = None


@dataclass(frozen=True)
class Case:
    """Runs that differ in their seed alone."""

    rule: str
    attack: str
    """`none` without attackers."""
    group: tuple[str, ...]
    """Values of the other settings that vary, in the order of `Study.by`."""
    runs: tuple[Run, ...]
    """Those that count, by seed."""
    seeds: tuple[str, ...]
    gaps: tuple[Gap, ...] = ()
    """Those without a result."""
    early: tuple[Gap, ...] = ()
    """Of `runs`, those that ended before their last round, as a model that diverges does: they count with
    the score that they had then."""

    @property
    def clean(self) -> bool:
        """Whether nobody attacks."""
        return self.attack == NONE

    def scores(
        self, metric: str, at: At = "final", better: Better | None = None
    ) -> tuple[float | None, ...]:
        """The score of each run: infinitely bad for one that is not finite, None for a run without it."""
        better = better or better_of(metric)
        if at == "final":
            found = [final(run, metric) for run in self.runs]
        elif at == "best":
            rounds, values = self.evaluations(metric)
            if not len(rounds):
                return (None,) * len(self.runs)
            mean = np.where(np.isfinite(values), values, _worst(better)).mean(axis=0)
            found = values[:, int(mean.argmin() if better == "lower" else mean.argmax())].tolist()
        else:
            last = [run.columns(metric)[1][-at:] for run in self.runs]
            found = [float(values.mean()) if len(values) else None for values in last]
        return tuple(value if value is None or math.isfinite(value) else _worst(better) for value in found)

    def evaluations(self, metric: str) -> tuple[NDArray[np.int64], Vector]:
        """Rounds after which all runs were evaluated, and the scores, (runs, rounds)."""
        columns = [run.columns(metric) for run in self.runs]
        if not columns:
            return np.zeros(0, np.int64), np.zeros((0, 0))
        rounds = reduce(np.intersect1d, [rounds for rounds, _ in columns])
        return rounds, np.stack([values[np.isin(at, rounds)] for at, values in columns])


def better_of(metric: str) -> Better:
    """The direction of a score by its name."""
    return "lower" if metric.endswith(LOWER) else "higher"


def final(run: Run, metric: str) -> float | None:
    """The score of the final parameters; NaN for one that is not finite, None of a run without it."""
    result = run.result or {}
    own = result.get("metrics")
    for place in (own, result):
        value = finite(place.get(metric)) if isinstance(place, dict) else None
        if value is not None:
            return value
    _, values = run.columns(metric)
    return float(values[-1]) if len(values) else None


def _worst(better: Better) -> float:
    return math.inf if better == "lower" else -math.inf


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and the standard deviation of a sample (n - 1); None where there are too few."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
