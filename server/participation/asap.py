"""Stochastic reduce over a graph (ASAP): the neighbourhood of one worker after another makes a round."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, cast

from varangian.aggregators import Aggregator
from varangian.aggregators.graphs import (
    GRAPHS,
    Exponential,
    Graph,
    GraphError,
    cycle,
    group,
    problem,
    requires,
)
from varangian.aggregators.graphs.checks import smallest_first
from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION, Participation
from varangian.server.participation.selection import InviteReady
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import RunState


@PARTICIPATION.register("asap")
@dataclass(frozen=True)
class Asap(Participation):
    """Stochastic reduce over a graph (ASAP): a round waits for one worker and its in-neighbours.

    The algorithm of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus,
    2016) at a server, with its NOTIFY-ACK: a vector is held until it is used, and only then its worker
    hears of the next model; so none is lost, used twice or overwritten. The centre moves on by one worker
    in each round.
    """

    graph: Annotated[Graph, GRAPHS] = field(default_factory=Exponential)
    """The communication graph; `varangian graph` prints the figures of one."""
    tau: int | None = 2
    """Maximum staleness: the age in rounds of the model of a vector; null accepts any age."""

    stands_as_aggregator = True

    def __post_init__(self) -> None:
        if self.tau is not None and self.tau < 0:
            raise ValueError(f"`tau` should be null or a number of rounds, at least 0. Found {self.tau}.")

    def problems(self, n: int, f: int, deadline: Seconds) -> Iterator[Problem]:
        if reason := problem(self.graph, n):
            yield Problem(self.setting("graph"), reason.rstrip("."))

    def guarantee_problem(self, aggregator: Aggregator, n: int, f: int) -> Problem | None:
        reason = requires(self.graph, aggregator, n, f)
        return Problem(self.setting("graph"), reason.rstrip(".")) if reason else None

    def remedies(self, n: int) -> Mapping[str, Iterable[int]]:
        return {}  # more workers do not make neighbourhoods larger

    def round_size(self, n: int, f: int) -> int:
        return min(_neighbourhood_sizes(self.graph, n), default=1)

    def selection(self, n: int, f: int) -> NeighbourhoodSelection:
        return NeighbourhoodSelection(self.graph, self.tau)

    def row_counts(self, n: int, f: int, quorum: int) -> tuple[int, ...]:
        return tuple(sorted({quorum, *_neighbourhood_sizes(self.graph, n)}))

    def lost_quorum(self, workers: tuple[Worker, ...], gone: Set[Worker], quorum: int) -> str:
        selection, n = NeighbourhoodSelection(self.graph), len(workers)
        for round in range(cycle(self.graph, n)):
            members = selection.members(workers, round)
            left, needed = len(set(members) - gone), min(quorum, len(members))
            if left < needed:
                return f"only {left} workers are left of {', '.join(members)}, and their quorum is {needed}"
        return ""

    def extra_vectors(self, n: int) -> int:
        """The models of rounds that are over, on their way to slow workers."""
        return n if self.tau is None else min(n, self.tau)


@dataclass(frozen=True)
class NeighbourhoodSelection(InviteReady):
    """Selection of one neighbourhood after another: in round t worker t mod n and those that it hears from.

    A ready worker gets the current model, and its vector waits for a round that the worker is a member of.
    No round waits for a worker that is not, and a fast worker is ahead by one vector.
    """

    graph: Graph
    tau: int | None = None
    """Maximum staleness in rounds when a vector is used; None for as long as it has to wait."""
    _known: dict[tuple[int, int], tuple[int, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[int, ...]], init=False, repr=False, compare=False
    )

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

    def full_size(self, n: int, round: int) -> int:
        return len(self.group(n, round))

    def needed(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return self.full_size(len(workers), state.round)

    def invite(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        """All that are ready, if they are members before a vector for this model is too old."""
        if self.tau is None:
            return ready
        rounds = range(state.round, state.round + min(self.tau + 1, cycle(self.graph, len(workers))))
        due = {worker for round in rounds for worker in self.members(workers, round)}
        return tuple(worker for worker in ready if worker in due)


def _neighbourhood_sizes(graph: Graph, n: int) -> tuple[int, ...]:
    """The possible sizes of a neighbourhood, ascending; none if there is no such graph."""
    return _sizes(cast("Hashable", graph), n)


@lru_cache(maxsize=16)
def _sizes(graph: Hashable, n: int) -> tuple[int, ...]:
    assert isinstance(graph, Graph)
    try:
        return tuple(size for _, _, size in smallest_first(graph, n))
    except GraphError:
        return ()
