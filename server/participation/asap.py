"""One neighbourhood of a graph after the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, cast

from varangian.aggregators.graphs import GRAPHS, Exponential, Graph, GraphError, problem
from varangian.aggregators.graphs.checks import smallest_first
from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION


@PARTICIPATION.register("asap")
@dataclass(frozen=True)
class Asap:
    """A round waits for one worker and those whom it hears from in a graph, and for nobody else.

    The stochastic reduce of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus,
    2016) at a server, with its NOTIFY-ACK: a vector is held until it is used, and only then its worker
    hears of the next model; so none is lost, used twice or overwritten. The centre moves on by one worker
    in each round.
    """

    graph: Annotated[Graph, GRAPHS] = field(default_factory=Exponential)
    """Who hears whom; `varangian graph` shows what one is worth."""
    tau: int | None = 2
    """How many rounds old the model of a vector may be when it is used; null uses it however old it is."""

    def __post_init__(self) -> None:
        if self.tau is not None and self.tau < 0:
            raise ValueError(f"`tau` should be null or a number of rounds, at least 0. Found {self.tau}.")

    def problems(self, n: int, f: int) -> Iterator[Problem]:
        if reason := problem(self.graph, n):
            yield Problem("graph", reason.rstrip("."))

    def answers(self, n: int, f: int) -> int:
        return min(neighbourhood_sizes(self.graph, n), default=1)

    def quorum(self, n: int, f: int) -> int:
        return max(1, self.answers(n, f) - f)

    def rows(self, n: int, quorum: int) -> tuple[int, ...]:
        return tuple(sorted({quorum, *neighbourhood_sizes(self.graph, n)}))


def neighbourhood_sizes(graph: Graph, n: int) -> tuple[int, ...]:
    """How many workers a neighbourhood can have, ascending; none if there is no such graph."""
    return _sizes(cast("Hashable", graph), n)


@lru_cache(maxsize=16)
def _sizes(graph: Hashable, n: int) -> tuple[int, ...]:
    assert isinstance(graph, Graph)
    try:
        return tuple(size for _, _, size in smallest_first(graph, n))
    except GraphError:
        return ()
