"""Curves: a score over rounds or over the length of the steps so far, with a band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varangian.experiments.results.cases import Case, Vector, mean_and_std
from varangian.experiments.results.run import Run


@dataclass(frozen=True)
class Curve:
    """A score of one case, evaluation by evaluation."""

    rule: str
    attack: str
    group: tuple[str, ...]
    rounds: tuple[int, ...]
    """Rounds after which all seeds were evaluated."""
    x: tuple[float, ...]
    """These rounds, or the length of the steps until then, as the mean over seeds."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of a sample; 0 where there is a single seed."""
    low: tuple[float, ...]
    """The lowest of the seeds."""
    high: tuple[float, ...]
    seeds: int


@dataclass(frozen=True)
class Matched:
    """Scores of the rules in one setting after steps of the same length in all.

    A rule whose updates are shorter trains with a smaller learning rate in effect, which alone may look
    like robustness; after a way of the same length it does not.
    """

    attack: str
    group: tuple[str, ...]
    length: float
    """The shortest way of any run in this setting: every run has gone as far."""
    scores: dict[str, tuple[float | None, float | None]]
    """Mean and deviation over seeds, by rule; between two evaluations on the line that joins them."""
    lengths: dict[str, float]
    """The mean length of the whole way, by rule."""


def curves(cases: Sequence[Case], metric: str) -> list[Curve]:
    """A curve over rounds of each case that has evaluations."""
    return _curves(cases, metric, by_length=False)


def curves_by_length(cases: Sequence[Case], metric: str) -> list[Curve]:
    """A curve over the length of the steps so far of each case that has evaluations."""
    return _curves(cases, metric, by_length=True)


def matched(cases: Sequence[Case], metric: str) -> list[Matched]:
    """The scores after ways of the same length, for each attack and group with at least two rules."""
    places: dict[tuple[str, tuple[str, ...]], list[Case]] = {}
    for case in cases:
        if case.runs:
            places.setdefault((case.attack, case.group), []).append(case)
    found: list[Matched] = []
    for (attack, group), members in places.items():
        ways = {case.rule: [_way(run, metric) for run in case.runs] for case in members}
        ways = {rule: runs for rule, runs in ways.items() if all(len(x) for x, _ in runs)}
        if len(ways) < 2:
            continue
        length = min(float(x[-1]) for runs in ways.values() for x, _ in runs)
        scores = {
            rule: mean_and_std([float(np.interp(length, x, y)) for x, y in runs])
            for rule, runs in ways.items()
        }
        lengths = {rule: sum(float(x[-1]) for x, _ in runs) / len(runs) for rule, runs in ways.items()}
        found.append(Matched(attack, group, length, scores, lengths))
    return found


def length_of_steps(run: Run, rounds: Vector) -> Vector:
    """The length of the steps until each of these rounds: the sum of learning rate x norm of the update."""
    at, lr = run.columns("lr")
    other, norm = run.columns("update_norm")
    both = np.intersect1d(at, other)
    sums = np.concatenate([[0.0], np.cumsum(lr[np.isin(at, both)] * norm[np.isin(other, both)])])
    return sums[np.searchsorted(both, rounds, side="right")]


def _way(run: Run, metric: str) -> tuple[Vector, Vector]:
    rounds, values = run.columns(metric)
    return length_of_steps(run, rounds.astype(np.float64)), values


def _curves(cases: Sequence[Case], metric: str, *, by_length: bool) -> list[Curve]:
    found: list[Curve] = []
    for case in cases:
        rounds, values = case.evaluations(metric)
        if not len(rounds):
            continue
        x = rounds.astype(np.float64)
        if by_length:
            x = np.mean([length_of_steps(run, x) for run in case.runs], axis=0)
        with np.errstate(invalid="ignore"):  # of losses that are not finite
            std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(rounds))
            mean = values.mean(axis=0)
        found.append(
            Curve(
                rule=case.rule,
                attack=case.attack,
                group=case.group,
                rounds=tuple(rounds.tolist()),
                x=tuple(x.tolist()),
                mean=tuple(mean.tolist()),
                std=tuple(std.tolist()),
                low=tuple(values.min(axis=0).tolist()),
                high=tuple(values.max(axis=0).tolist()),
                seeds=len(values),
            )
        )
    return found
