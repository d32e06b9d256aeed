"""The timetable of a run: availability and delays of its workers, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from varangian.worker.simulation.availability import Always, Availability, WorkerIndex
from varangian.worker.simulation.delays import Delay, NoDelay

HORIZON = 1000
"""Rounds to look ahead at once, however rarely a worker is available."""


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """The availability and the delays of all workers of a run."""

    names: tuple[str, ...]
    seed: int
    availability: Availability = field(default_factory=Always)
    delays: Delay = field(default_factory=NoDelay)

    def available(self, worker: str, round: int) -> bool:
        return self.availability.available(self._places[worker], round)

    def delay(self, worker: str, round: int) -> float:
        """Seconds."""
        return self.delays.seconds(self._places[worker], round)

    def present(self, round: int) -> tuple[str, ...]:
        """The workers that take part in a round; possibly none."""
        return tuple(worker for worker in self.names if self.available(worker, round))

    def next_round(self, worker: str, round: int, rounds: int) -> int | None:
        """The first round from this one on in which the worker takes part; None if the run ends before."""
        return next((r for r in range(round, rounds) if self.available(worker, r)), None)

    def turn(self, worker: str, round: int) -> int:
        """The first round from this one on that may be the worker's: it is away in all before."""
        ahead = round + HORIZON
        found = self.next_round(worker, round, ahead)
        return ahead if found is None else found

    @cached_property
    def _places(self) -> dict[str, WorkerIndex]:
        return {name: WorkerIndex(self.seed, i, len(self.names)) for i, name in enumerate(self.names)}
