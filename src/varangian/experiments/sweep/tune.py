"""Tuning: of several values of a setting the one with the best worst case on a validation split.

One value is chosen for all attacks, as a user chooses it before she knows the attack; and from a part of
the training data, so that the test data, which the tables show, has no part in the choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from varangian.cli.views.summary import number
from varangian.experiments.sweep.plan import ATTACK, COUNT, label, short
from varangian.experiments.sweep.progress import Outcome

ACCURACY, LOSS = "validation_accuracy", "validation_loss"


@dataclass(frozen=True)
class Candidate:
    """A value, and how it did under the attack that hurt it most."""

    value: Any
    worst: float | None
    """The mean over seeds of the accuracy, or of the loss where there is none; None if a run has neither
    of them."""
    attack: Any

    def plain(self) -> dict[str, Any]:
        return {"value": self.value, "worst": self.worst, "attack": self.attack}


@dataclass(frozen=True)
class Choice:
    """The value that was chosen for some of the points."""

    settings: Mapping[str, Any]
    """Those that the points share: all that vary but the tuned one, the seed, the attack and the number of
    attackers."""
    metric: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate

    def plain(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "value": self.chosen.value,
            "worst": self.chosen.worst,
            "attack": self.chosen.attack,
            "candidates": [candidate.plain() for candidate in self.candidates],
        }

    def row(self, path: str) -> tuple[str, str, str]:
        """The chosen value, the points it is for, and how good it is there, as a row of a table."""
        attack = "no attack" if self.chosen.attack is None else short(self.chosen.attack)
        score = f"{self.metric} {number(self.chosen.worst)}, {attack}"
        return label(self.settings) or "all points", f"{path} {short(self.chosen.value)}", score


def choose(path: str, outcomes: Iterable[Outcome]) -> tuple[Choice, ...]:
    """The choice for each rule and each value of what else varies.

    A group in which no value has a score has no choice.

    Args:
        path: of the setting that is tuned.
        outcomes: of all points.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(_key(_shared(outcome, path)), []).append(outcome)
    return tuple(choice for members in groups.values() for choice in _choices(path, members))


def _choices(path: str, members: list[Outcome]) -> Iterator[Choice]:
    metric = ACCURACY if any(_score(outcome, ACCURACY) is not None for outcome in members) else LOSS
    sign = 1 if metric == ACCURACY else -1
    by_value: dict[str, list[Outcome]] = {}
    for outcome in members:
        by_value.setdefault(_key(outcome.point.settings[path]), []).append(outcome)
    candidates = [_candidate(path, runs, metric, sign) for runs in by_value.values()]
    scored = [(candidate.worst, candidate) for candidate in candidates if candidate.worst is not None]
    if scored:
        # The first of equal ones: the order in the grid is the user's.
        _, chosen = max(scored, key=lambda entry: sign * entry[0])
        yield Choice(_shared(members[0], path), metric, tuple(candidates), chosen)


def _candidate(path: str, runs: list[Outcome], metric: str, sign: int) -> Candidate:
    """One value: the worst attack on it, by whatever number of attackers, where there are attacks."""
    value = runs[0].point.settings[path]
    by_attack: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in runs:
        count = outcome.point.config.byzantine.count
        by_attack.setdefault((_key(_attack(outcome)), count), []).append(outcome)
    attacked = [found for (_, count), found in by_attack.items() if count] or [*by_attack.values()]
    means = list[tuple[float, Any]]()
    for found in attacked:
        scores = [score for outcome in found if (score := _score(outcome, metric)) is not None]
        if len(scores) < len(found):  # a run without a score is worse than any
            return Candidate(value, None, _attack(found[0]))
        means.append((fmean(scores), _attack(found[0])))
    worst, attack = min(means, key=lambda entry: sign * entry[0])
    return Candidate(value, worst, attack)


def _attack(outcome: Outcome) -> Any:
    """The attack as it is written in the grid, or else resolved."""
    point = outcome.point
    if ATTACK in point.settings:
        return point.settings[ATTACK]
    return point.config.resolved()["byzantine"]["attack"]


def _shared(outcome: Outcome, path: str) -> dict[str, Any]:
    settings = outcome.point.settings
    return {key: value for key, value in settings.items() if key not in (path, ATTACK, COUNT)}


def _score(outcome: Outcome, metric: str) -> float | None:
    metrics = (outcome.result or {}).get("metrics") or {}
    score = metrics.get(metric)
    return score if score is not None and math.isfinite(score) else None


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
