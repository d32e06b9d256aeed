"""Neighbourhoods in turn: which workers push in which round of `asap`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varangian.aggregators.graphs.base import Graph
from varangian.aggregators.graphs.figures import links_of, weights_of_period


def group(graph: Graph, n: int, t: int) -> tuple[int, ...]:
    """The neighbourhood of round t: a centre and those from which it hears, ascending.

    Every worker is the centre once in n rounds, and a periodic graph goes on only after that: if it went on
    in each round, some workers would never be in one neighbourhood.
    """
    centre, turn = t % n, t // n
    return tuple(sorted((centre, *graph.neighbours(n, centre, turn % graph.period(n)))))


def cycle(graph: Graph, n: int) -> int:
    """The period of the neighbourhoods in rounds."""
    return n * graph.period(n)


def inclusions(graph: Graph, n: int) -> NDArray[np.int64]:
    """The number of neighbourhoods of a cycle with each worker, (n,); equal if in- and out-degree are."""
    heard: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
    for weights in weights_of_period(graph, n):
        heard += 1 + links_of(weights).sum(axis=0)
    return heard
