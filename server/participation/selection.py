"""Choices of participants: everyone, the longest away, whoever comes first, neighbourhoods of a graph.

n  workers     t  round     k  seats
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from varangian.aggregators.graphs.base import Graph, GraphError
from varangian.aggregators.graphs.turns import cycle, group
from varangian.server.participation.staleness import Constant, Staleness
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import NEVER, RunState


def longest_absent(available: Sequence[Worker], last: Mapping[Worker, int], k: int) -> tuple[Worker, ...]:
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


class _Whoever:
    """Whoever is ready is invited at once, and a round reduces over all that is there."""

    prompt = False

    def members(self, workers: tuple[Worker, ...], round: int) -> tuple[Worker, ...]:
        return workers

    def expected(self, workers: tuple[Worker, ...], state: RunState) -> Collection[Worker]:
        return state.invited.keys()

    def quorum(self, declared: int, seats: int, there: int) -> int:
        return min(declared, seats)

    def next(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        return ready

    def wake_at(self, state: RunState) -> Seconds | None:
        return None

    def factor(self, age: int) -> float:
        return 1.0


class _Prompt(_Whoever):
    """Every round has its own vectors."""

    prompt = True

    @property
    def tau(self) -> int:
        return 0


@dataclass(frozen=True)
class Everyone(_Prompt):
    """All n, every round: what the round machine does, for those who ask."""

    def problem(self, n: int, deadline: Seconds) -> str | None:
        return None

    def seats(self, n: int, round: int) -> int:
        return n

    def wanted(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return len(workers)


@dataclass(frozen=True)
class LongestAbsent(_Prompt):
    """k of those who are there: whose last participation is the longest ago.

    To be invited is to participate, whatever comes of it: who never answers does not keep a seat for ever.
    Only who declines, because it is away by now, has not taken part.

    The choice waits until each of the n workers asks or has said for which later round it will, since then
    it does not depend on who is faster; but only for a while, and the next time not for who was too late.
    """

    k: int
    gather: Seconds = 0.0
    """How long to wait after a round has opened for more to choose from."""

    def problem(self, n: int, deadline: Seconds) -> str | None:
        if not 1 <= self.k <= n:
            return f"`k` should be between 1 and n = {n}, as many as are chosen in a round. Found {self.k}."
        if not 0 <= self.gather < deadline:
            span = f"at least 0 and less than the deadline of {deadline:g}"
            return f"`gather` should be a number of seconds, {span}. Found {self.gather}."
        return None

    def seats(self, n: int, round: int) -> int:
        return self.k

    def wanted(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        if self._gathers(workers, state):
            return self.k
        return max(1, min(self.k, len(_invited_workers(state)) + ready))

    def quorum(self, declared: int, seats: int, there: int) -> int:
        """As many may be silent as in a full round: a seat that nobody took is nobody's silence."""
        return max(1, min(declared, seats) - max(0, seats - there))

    def next(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        if self._gathers(workers, state):
            return ()
        # Those who have a seat were silent until the deadline: whoever else is there may answer for them.
        free = len(ready) if state.overdue else self.k - len(_invited_workers(state))
        return longest_absent(ready, state.last, max(0, free))

    def wake_at(self, state: RunState) -> Seconds | None:
        return None if state.opened_at is None or _invited_workers(state) else state.opened_at + self.gather

    def _gathers(self, workers: tuple[Worker, ...], state: RunState) -> bool:
        early = state.opened_at is None or state.at < state.opened_at + self.gather
        known = state.parked.keys() | state.given_up | state.absent
        return early and not _invited_workers(state) and len(known) < len(workers)


def _invited_workers(state: RunState) -> set[Worker]:
    """Who was invited to this round and may still answer, or has."""
    return {*state.invited, *state.held, *state.faults}


@dataclass(frozen=True)
class BufferSelection(_Whoever):
    """Whoever is ready gets the current model; as soon as `size` vectors are there they are aggregated.

    "Federated Learning with Buffered Asynchronous Aggregation" (Nguyen et al., 2022), with one place in the
    buffer for each worker: the next invitation comes after its vector is used.
    """

    size: int
    tau: int
    """How many rounds old a vector may be when it is used."""
    staleness: Staleness = field(default_factory=Constant)

    def problem(self, n: int, deadline: Seconds) -> str | None:
        if not 1 <= self.size <= n:
            return f"`size` should be between 1 and n = {n}: a worker has one place. Found {self.size}."
        if self.tau < 0:
            return f"`tau` should be a number of rounds, at least 0. Found {self.tau}."
        return None

    def seats(self, n: int, round: int) -> int:
        return self.size

    def wanted(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return self.size

    def factor(self, age: int) -> float:
        return self.staleness.factor(age)


@dataclass(frozen=True)
class NeighbourhoodSelection(_Whoever):
    """One neighbourhood of a graph after the other: in round t worker t mod n and those whom it hears from.

    The stochastic reduce of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus,
    2016) on a server. Whoever is ready gets the current model, and its vector waits until its turn comes:
    nobody waits for those who are not members, and a fast worker is ahead by one vector.
    """

    graph: Graph
    tau: int | None = None
    """How many rounds old a vector may be when it is used; None for as long as its turn takes to come."""
    _known: dict[tuple[int, int], tuple[int, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[int, ...]], init=False, repr=False, compare=False
    )

    def problem(self, n: int, deadline: Seconds) -> str | None:
        if self.tau is not None and self.tau < 0:
            return f"`tau` should be a number of rounds, at least 0, or null. Found {self.tau}."
        try:
            group(self.graph, n, 0)
        except GraphError as error:
            return str(error)
        return None

    def group(self, n: int, t: int) -> tuple[int, ...]:
        """The workers of round t, ascending."""
        turn = n, t % cycle(self.graph, n)
        if turn not in self._known:
            self._known[turn] = group(self.graph, *turn)
        return self._known[turn]

    def members(self, workers: tuple[Worker, ...], round: int) -> tuple[Worker, ...]:
        return tuple(workers[i] for i in self.group(len(workers), round))

    def expected(self, workers: tuple[Worker, ...], state: RunState) -> Collection[Worker]:
        return self.members(workers, state.round)

    def seats(self, n: int, round: int) -> int:
        return len(self.group(n, round))

    def wanted(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return self.seats(len(workers), state.round)

    def next(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        """All of them, if their turn comes before a vector for this model is too old."""
        if self.tau is None:
            return ready
        rounds = range(state.round, state.round + min(self.tau + 1, cycle(self.graph, len(workers))))
        due = {worker for round in rounds for worker in self.members(workers, round)}
        return tuple(worker for worker in ready if worker in due)
