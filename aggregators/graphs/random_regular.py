"""Random regular graphs, connected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from varangian.aggregators.graphs.base import GRAPHS, GraphError, Links, check_n, reached
from varangian.aggregators.graphs.links import Static

ATTEMPTS = 10_000
"""Graphs that are drawn until one is connected; many for degree 2, a few for higher degrees."""


@GRAPHS.register("random_regular")
@dataclass(frozen=True)
class RandomRegular(Static):
    """Random regular graph: connected, and every worker has the same number of random neighbours."""

    degree: int = 4
    """Neighbours of each worker; degree times n must be even."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(f"`degree` should be at least 2, to be connected. Found {self.degree}.")
        if self.seed < 0:
            raise ValueError(f"`seed` should not be negative. Found {self.seed}.")

    def links(self, n: int) -> Links:
        check_n(self, n, self.degree + 1)
        if n % 2 and self.degree % 2:
            raise GraphError(
                f"{self!r} needs an even number of workers, because every link has two ends. Found {n}. "
                f"Use degree {self.degree - 1} or {self.degree + 1}."
            )
        return _drawn(n, self.degree, self.seed)


@lru_cache(maxsize=16)
def _drawn(n: int, degree: int, seed: int) -> Links:
    rng = np.random.default_rng([seed, n, degree])
    # Of a dense graph the missing links are drawn, which succeeds far more often.
    sparse = min(degree, n - 1 - degree)
    for _ in range(ATTEMPTS):
        links = _paired(n, sparse, rng)
        if links is not None and sparse != degree:
            links = ~(links | np.eye(n, dtype=bool))
        if links is not None and reached(links, 0).all():
            links.setflags(write=False)
            return links
    raise GraphError(f"No connected graph on {n} workers was found. Use a degree above {degree}.")


def _paired(n: int, degree: int, rng: np.random.Generator) -> Links | None:
    """One attempt at a random regular graph: ends of links are paired at random, until none can be paired.

    "Generating Random Regular Graphs Quickly" (Steger and Wormald, 1999), in the form that pairs many ends
    at once. None where ends are left over.
    """
    links = np.zeros((n, n), dtype=bool)
    ends = np.repeat(np.arange(n), degree)
    while len(ends) > 0:
        rng.shuffle(ends)
        left: list[int] = []
        for a, b in ends.reshape(-1, 2).tolist():
            if a == b or links[a, b]:
                left += a, b
            else:
                links[a, b] = links[b, a] = True
        if len(left) == len(ends):
            return None
        ends = np.array(left, dtype=np.int64)
    return links
