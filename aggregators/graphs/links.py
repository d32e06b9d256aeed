"""Static graphs that are given by their links."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from varangian.aggregators.graphs.base import Links, Matrix


class Static(ABC):
    """A static graph: weights and neighbours follow from its links."""

    @abstractmethod
    def links(self, n: int) -> Links:
        """The adjacency (n, n); not to be written to.

        Raises:
            GraphError: there is no such graph on n workers.
        """

    def period(self, n: int) -> int:
        return 1

    def weights(self, n: int, t: int) -> Matrix:
        return averaging(self.links(n))

    def neighbours(self, n: int, i: int, t: int) -> tuple[int, ...]:
        return tuple(np.flatnonzero(self.links(n)[i]).tolist())


def averaging(links: Links) -> Matrix:
    """Mixing weights (n, n) for an adjacency (n, n).

    Where all links go both ways, Metropolis weights: a link weighs 1 / (1 + the larger degree of its ends),
    which is doubly stochastic on every graph. Otherwise each receiver averages what it hears and its own;
    then workers that are heard by many count for more, unless in-degree and out-degree are equal.
    """
    degrees = links.sum(axis=1)
    if not (links == links.T).all():
        heard: Matrix = (links + np.eye(len(links))) / (1 + degrees[:, None])
        return heard
    weights: Matrix = links / (1 + np.maximum(degrees[:, None], degrees))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights
