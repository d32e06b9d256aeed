"""Which workers push in which round, when a server reduces over one neighbourhood at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varangian.aggregators.graphs.base import Graph
from varangian.aggregators.graphs.figures import links_of, weights_of_period


def group(graph: Graph, n: int, t: int) -> tuple[int, ...]:
    """The workers of round t, ascending: the next centre and those whom it hears from.

    Every worker is the centre once in n rounds, and only then a periodic graph moves on: were it to move
    in each round, centre and graph would repeat in step, and some workers would never meet.
    """
    centre, turn = t % n, t // n
    return tuple(sorted((centre, *graph.neighbours(n, centre, turn % graph.period(n)))))


def cycle(graph: Graph, n: int) -> int:
    """After how many rounds the groups repeat themselves."""
    return n * graph.period(n)


def inclusions(graph: Graph, n: int) -> NDArray[np.int64]:
    """(n,): in how many groups of a cycle each worker is: equal if all are heard as often as they hear."""
    heard: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
    for weights in weights_of_period(graph, n):
        heard += 1 + links_of(weights).sum(axis=0)
    return heard
