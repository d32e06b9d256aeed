"""Four ways to choose who takes part in a round. Time and availability come in; nothing else is known.

n  workers     t  round     K  seats
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from varangian.server.events import Seconds, Worker
from varangian.server.invitations import Participation
from varangian.server.staleness import Constant, Staleness

Neighbours: TypeAlias = Callable[[int, int, int], Sequence[int]]
"""(n, i, t): whom worker i hears from when the graph is in its round t, itself not among them."""

NEVER = -1
"""The round of the last participation of a worker that never took part."""


def oldest(available: Sequence[Worker], last: Mapping[Worker, int], k: int) -> tuple[Worker, ...]:
    """The k available workers whose last participation is the longest ago, ties by name; or all there are.

    The selection of FedLaAvg, "Federated Optimization under Intermittent Client Availability" (Yan et al.,
    2023). Its Lemma 1: with each of n workers available at least once in any E rounds in a row, no last
    participation is ever more than ceil(n / k) E - 1 rounds ago.
    """
    by_age = sorted(available, key=lambda worker: (last.get(worker, NEVER), worker))
    return tuple(sorted(by_age[:k]))


def staleness_bound(n: int, k: int, every: int) -> int:
    """The bound of Lemma 1, in rounds."""
    return -(-n // k) * every - 1


class _Synchronous:
    """Every round has its own model, and its vectors are as old as each other."""

    tau: ClassVar[int] = 0

    def wake_at(self, state: Participation) -> Seconds | None:
        return None

    def factor(self, age: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Everyone(_Synchronous):
    """All who are there, every round."""

    def problem(self, n: int) -> str | None:
        return None

    def wanted(self, workers: tuple[Worker, ...], round: int) -> int:
        return len(workers)

    def next(
        self, workers: tuple[Worker, ...], state: Participation, ready: tuple[Worker, ...], at: Seconds
    ) -> tuple[Worker, ...]:
        return ready


@dataclass(frozen=True)
class Oldest(_Synchronous):
    """K of those who are there: whose last participation is the longest ago.

    To be invited is to participate, whatever comes of it: who never answers does not keep a seat for ever.
    """

    k: int
    gather: Seconds = 0.0
    """How long to wait after a round has opened for more to choose from; no longer once all are there."""

    def problem(self, n: int) -> str | None:
        if not 1 <= self.k <= n:
            return f"`k` should be between 1 and n = {n}, as many as are chosen in a round. Found {self.k}."
        if not self.gather >= 0:
            return f"`gather` should be a number of seconds, at least 0. Found {self.gather}."
        return None

    def wanted(self, workers: tuple[Worker, ...], round: int) -> int:
        return self.k

    def next(
        self, workers: tuple[Worker, ...], state: Participation, ready: tuple[Worker, ...], at: Seconds
    ) -> tuple[Worker, ...]:
        seated = len(_seated(state))
        early = state.opened_at is None or at < state.opened_at + self.gather
        if early and seated + len(ready) < len(workers):
            return ()
        return oldest(ready, state.last, max(0, self.k - seated))

    def wake_at(self, state: Participation) -> Seconds | None:
        return None if state.opened_at is None else state.opened_at + self.gather


def _seated(state: Participation) -> set[Worker]:
    """Who was invited to this round and may still answer, or has."""
    invited = {worker for worker, round in state.invited.items() if round == state.round}
    return invited | set(state.arrived) | state.faulty


@dataclass(frozen=True)
class Rotating(_Synchronous):
    """One neighbourhood of a graph after the other: in round t worker t mod n and those whom it hears from.

    The stochastic reduce of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus,
    2016) on a server. A graph that changes does so once all n workers had their turn: so with a regular
    one everybody takes part equally often in any n rounds from a multiple of n.
    """

    neighbours: Neighbours

    def problem(self, n: int) -> str | None:
        return None

    def members(self, n: int, t: int) -> tuple[int, ...]:
        """Who takes part in round t, ascending."""
        centre = t % n
        return tuple(sorted({centre, *self.neighbours(n, centre, t // n)}))

    def names(self, workers: tuple[Worker, ...], t: int) -> tuple[Worker, ...]:
        return tuple(workers[i] for i in self.members(len(workers), t))

    def wanted(self, workers: tuple[Worker, ...], round: int) -> int:
        return len(self.members(len(workers), round))

    def next(
        self, workers: tuple[Worker, ...], state: Participation, ready: tuple[Worker, ...], at: Seconds
    ) -> tuple[Worker, ...]:
        members = self.names(workers, state.round)
        return tuple(worker for worker in ready if worker in members)


@dataclass(frozen=True)
class Buffered:
    """Whoever is ready gets the current model; as soon as `size` vectors are there they are aggregated.

    "Federated Learning with Buffered Asynchronous Aggregation" (Nguyen et al., 2022), with one place in the
    buffer for each worker: the next invitation comes after its vector is used.
    """

    size: int
    tau: int
    """How many rounds old a vector may be when it is used."""
    staleness: Staleness = field(default_factory=Constant)

    def problem(self, n: int) -> str | None:
        if not 1 <= self.size <= n:
            return f"`size` should be between 1 and n = {n}: a worker has one place. Found {self.size}."
        if self.tau < 0:
            return f"`tau` should be a number of rounds, at least 0. Found {self.tau}."
        return None

    def wanted(self, workers: tuple[Worker, ...], round: int) -> int:
        return self.size

    def next(
        self, workers: tuple[Worker, ...], state: Participation, ready: tuple[Worker, ...], at: Seconds
    ) -> tuple[Worker, ...]:
        return ready

    def wake_at(self, state: Participation) -> Seconds | None:
        return None

    def factor(self, age: int) -> float:
        return self.staleness.factor(age)
