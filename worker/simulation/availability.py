"""Availability of simulated workers: pure functions of the seed, the worker and the round.

Any process can ask for any worker and any round, in any order, and gets the same answer. Random models
with memory (churn, the longest absence) look back over the draws of earlier rounds, which are also pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from varangian.registry import Registry
from varangian.worker.seeds import stream_seed


class WorkerIndex(NamedTuple):
    """A worker among those of a run."""

    seed: int
    worker: int
    """Its number, from 0, in the order of names."""
    n: int

    def uniform(self, *purpose: str | int) -> float:
        """A number above 0 and below 1 that only this worker has for this purpose."""
        # 52 bits and a half are exact; of more the largest would be rounded to 1.
        return ((stream_seed(self.seed, *purpose, self.worker) >> 12) + 0.5) / 2**52


@runtime_checkable
class Availability(Protocol):
    """The rounds in which a worker takes part."""

    def available(self, place: WorkerIndex, round: int, /) -> bool: ...


AVAILABILITY: Registry[Availability] = Registry("availability")


@AVAILABILITY.register("always")
@dataclass(frozen=True)
class Always:
    """Full availability: every worker takes part in every round."""

    def available(self, place: WorkerIndex, round: int) -> bool:
        return True


@AVAILABILITY.register("alternating")
@dataclass(frozen=True)
class Alternating:
    """Alternating halves: the first n/2 workers (rounded down) are available, then the others.

    The setting of "Distributed Non-Convex Optimization with Sublinear Speedup under Intermittent Client
    Availability" (Yan et al., 2024), where the halves hold different classes.
    """

    alpha: float = 0.5
    """Share of a period that belongs to the second half of the workers, rounded to whole rounds."""
    period: int = 10
    """Rounds of one period; every absence is shorter."""

    def __post_init__(self) -> None:
        if self.period < 2:
            raise ValueError(f"`period` should be at least 2. Found {self.period}.")
        if not 0 < self.alpha < 1 or not 0 < self._second < self.period:
            raise ValueError(
                "`alpha` should leave each half at least one round of a period, so be between "
                f"{1 / self.period:g} and {1 - 1 / self.period:g}. Found {self.alpha}."
            )

    @property
    def _second(self) -> int:
        return math.floor(self.alpha * self.period + 0.5)

    def available(self, place: WorkerIndex, round: int) -> bool:
        turn_of_second = round % self.period >= self.period - self._second
        return turn_of_second == (place.worker >= place.n // 2)


@AVAILABILITY.register("random")
@dataclass(frozen=True)
class Random:
    """Independent random availability with a bound on the longest absence."""

    chance: float = 0.5
    """Probability that a worker is available in a round."""
    period: int = 10
    """A worker is available at least once in this many consecutive rounds: E of FedLaAvg."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        if self.chance == 0:
            raise ValueError("`chance` should be above 0. Found 0.0.")
        if self.period < 1:
            raise ValueError(f"`period` should be at least 1. Found {self.period}.")

    def available(self, place: WorkerIndex, round: int) -> bool:
        """Available by its own draw, or when the last such round is a multiple of `period` rounds ago."""
        return (round - self._last_wish(place, round)) % self.period == 0

    def _last_wish(self, place: WorkerIndex, round: int) -> int:
        """The last round until this one in which it wants to come; before the first, one at random."""
        for earlier in range(round, -1, -1):
            if place.uniform("availability", "random", earlier) < self.chance:
                return earlier
        return -1 - int(place.uniform("availability", "start") * self.period)


@AVAILABILITY.register("diurnal")
@dataclass(frozen=True)
class Diurnal:
    """Diurnal availability: a probability for each hour of the day; workers are in different time zones."""

    trace: tuple[float, ...] = (0.1,) * 6 + (0.3,) * 4 + (0.5,) * 8 + (0.9,) * 6
    """Probability of being available in each hour; a day has as many hours as there are numbers."""
    hour: int = 1
    """Rounds in an hour."""

    def __post_init__(self) -> None:
        for chance in self.trace:
            check_chance("trace", chance)
        if not any(self.trace):
            raise ValueError("`trace` should hold a chance above 0, or no worker is ever available.")
        if self.hour < 1:
            raise ValueError(f"`hour` should be at least 1. Found {self.hour}.")

    def available(self, place: WorkerIndex, round: int) -> bool:
        zone = int(place.uniform("availability", "zone") * len(self.trace))
        chance = self.trace[(round // self.hour + zone) % len(self.trace)]
        return place.uniform("availability", "diurnal", round) < chance


@AVAILABILITY.register("churn")
@dataclass(frozen=True)
class Churn:
    """Churn: workers leave and come back; stays and absences have geometrically distributed lengths."""

    stay: float = 50.0
    """Mean number of rounds until a worker leaves."""
    away: float = 10.0
    """Mean number of rounds until it comes back."""

    def __post_init__(self) -> None:
        for name, value in (("stay", self.stay), ("away", self.away)):
            if not 1 <= value < math.inf:
                raise ValueError(f"`{name}` should be at least 1 round. Found {value}.")

    def available(self, place: WorkerIndex, round: int) -> bool:
        """Looks back for a draw that decides, whatever was before it; between, a draw keeps or turns.

        The chain stays where a draw is at least 1/stay, and comes back where it is at least 1 - 1/away:
        above both it is there, below both away.
        """
        low, high = sorted((1 / self.stay, 1 - 1 / self.away))
        turns, turned = 1 / self.stay > 1 - 1 / self.away, False
        for earlier in range(round, 0, -1):
            draw = place.uniform("availability", "churn", earlier)
            if not low <= draw < high:
                return (draw >= high) != turned
            turned ^= turns
        there_at_first = place.uniform("availability", "churn", 0) < self.stay / (self.stay + self.away)
        return there_at_first != turned


def check_chance(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` should be between 0 and 1. Found {value}.")
