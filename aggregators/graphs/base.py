"""What a communication graph is: who hears whom in a round, and how much they count.

n  workers, numbered from 0     t  round     i  receiver     j  sender
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from varangian.registry import Registry

Matrix = NDArray[np.float64]
Links = NDArray[np.bool_]
"""(n, n): entry (i, j) says that i hears from j. The diagonal is False."""


class GraphError(ValueError):
    """A graph that does not exist for this number of workers, or a file that describes none."""


@runtime_checkable
class Graph(Protocol):
    """A graph on any number of workers, perhaps another one in every round of a period."""

    def weights(self, n: int, t: int, /) -> Matrix:
        """W of round t, (n, n): what each receiver (row) takes of each sender; rows sum to 1.

        Raises:
            GraphError: there is no such graph on n workers.
        """
        ...

    def period(self, n: int, /) -> int:
        """After how many rounds the graph repeats itself; 1 for one that stays."""
        ...

    def neighbours(self, n: int, i: int, t: int, /) -> tuple[int, ...]:
        """Whom i hears from in round t, ascending, without itself; raises as `weights` does."""
        ...


GRAPHS: Registry[Graph] = Registry("graph")


def check_n(graph: object, n: int, least: int) -> None:
    if n < least:
        raise GraphError(f"{graph!r} needs at least {least} workers. Found {n}.")


def reached(links: Links, start: int) -> NDArray[np.bool_]:
    """(n,): who hears of what `start` sends, directly or through others; itself too."""
    seen: NDArray[np.bool_] = np.arange(len(links)) == start
    while True:
        further: NDArray[np.bool_] = seen | links[:, seen].any(axis=1)
        if (further == seen).all():
            return seen
        seen = further
