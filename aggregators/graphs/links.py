"""Graphs that stay and are given by their links."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from varangian.aggregators.graphs.base import Links, Matrix


class Static(ABC):
    """Weights and neighbours of a graph that is known by its links."""

    @abstractmethod
    def links(self, n: int) -> Links:
        """Who hears whom; not to be written to.

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
    """Weights for these links.

    Where all links go both ways, those of Metropolis: a link weighs 1 / (1 + the larger degree of its
    ends), which is doubly stochastic on every graph. Otherwise each receiver averages what it hears and its
    own; then workers that are heard by many count for more, unless all are heard as often as they hear.
    """
    degrees = links.sum(axis=1)
    if not (links == links.T).all():
        heard: Matrix = (links + np.eye(len(links))) / (1 + degrees[:, None])
        return heard
    weights: Matrix = links / (1 + np.maximum(degrees[:, None], degrees))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights
