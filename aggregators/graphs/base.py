"""The interface of communication graphs: neighbours and mixing weights of each round.

n  workers, numbered from 0     t  round     i  receiver     j  sender
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from varangian.registry import Registry

Matrix = NDArray[np.float64]
Links = NDArray[np.bool_]
"""Adjacency (n, n): entry (i, j) says that i hears from j. The diagonal is False."""


class GraphError(ValueError):
    """A graph that does not exist for this number of workers, or a file that describes none."""


@runtime_checkable
class Graph(Protocol):
    """A communication graph on any number of workers; it may change from round to round, periodically."""

    def weights(self, n: int, t: int, /) -> Matrix:
        """The mixing matrix W of round t, (n, n): what each receiver (row) takes of each sender (column).

        Rows sum to 1.

        Raises:
            GraphError: there is no such graph on n workers.
        """
        ...

    def period(self, n: int, /) -> int:
        """The period in rounds; 1 for a graph that does not change."""
        ...

    def neighbours(self, n: int, i: int, t: int, /) -> tuple[int, ...]:
        """The workers from which i hears in round t, ascending, without itself; raises as `weights`."""
        ...


GRAPHS: Registry[Graph] = Registry("graph")


def check_n(graph: object, n: int, least: int) -> None:
    if n < least:
        raise GraphError(f"{graph!r} needs at least {least} workers. Found {n}.")


def reached(links: Links, start: int) -> NDArray[np.bool_]:
    """The workers that `start` reaches, directly or through others, itself too: (n,) bool.

    Breadth-first search; networkx would take half a second to import for it.
    """
    seen: NDArray[np.bool_] = np.arange(len(links)) == start
    while True:
        further: NDArray[np.bool_] = seen | links[:, seen].any(axis=1)
        if (further == seen).all():
            return seen
        seen = further
