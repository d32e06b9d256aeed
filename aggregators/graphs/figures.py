"""Figures of a graph: degrees, messages, spectral gap, rounds to an exact average."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varangian.aggregators.graphs.base import Graph, Links, Matrix, reached

ROUNDING = 1e-12
DIGITS = 12
"""Decimal digits of eigenvalues that are kept; the rest is rounding."""
APPROACH = 1e-6
"""An error below this that is not zero after the round says that the average is only approached."""
PATIENCE = 64
"""Rounds that are tried for an exact average, where the period is shorter."""


@dataclass(frozen=True)
class Figures:
    """Figures of a graph on n workers; gaps of a periodic one are of the product of W over a period."""

    n: int
    period: int
    degree: tuple[int, int]
    """The fewest and the most that a worker hears from in one round."""
    messages: float
    """Per round, on average."""
    gap: float
    """Spectral gap 1 - rho, with rho the second largest absolute value among the eigenvalues of W."""
    gap_per_round: float
    """1 - rho^(1 / period), to compare with graphs that do not change."""
    singular_gap: float
    """1 - sigma_2, with sigma_2 the second largest singular value of W."""
    doubly_stochastic: bool
    """Whether W is so in every round; otherwise the limit is not the plain average."""
    connected: bool
    exact: int | None
    """After how many rounds everybody has exactly the average; None for a graph that only approaches it."""


def figures(graph: Graph, n: int) -> Figures:
    """All figures of a graph on n workers.

    Raises:
        GraphError: there is no such graph on n workers.
    """
    rounds = weights_of_period(graph, n)
    whole = product(rounds)
    heard = [links_of(weights).sum(axis=1) for weights in rounds]
    rho = 1 - gap(whole)
    return Figures(
        n=n,
        period=len(rounds),
        degree=(min(int(row.min()) for row in heard), max(int(row.max()) for row in heard)),
        messages=sum(int(row.sum()) for row in heard) / len(rounds),
        gap=1 - rho,
        gap_per_round=1 - rho ** (1 / len(rounds)),
        singular_gap=singular_gap(whole),
        doubly_stochastic=all(map(doubly_stochastic, rounds)),
        connected=stranger(graph, n) is None,
        exact=exact_period(graph, n),
    )


def gap(weights: Matrix) -> float:
    """1 - rho, with rho the second largest absolute value among the eigenvalues; 0 when disconnected."""
    symmetric = np.array_equal(weights, weights.T)
    values = np.linalg.eigvalsh(weights) if symmetric else np.linalg.eigvals(weights)
    return _below_one(np.sort(np.abs(values))[::-1])


def singular_gap(weights: Matrix) -> float:
    """1 - sigma_2, with sigma_2 the second largest singular value; equals `gap` for a normal matrix."""
    return _below_one(np.linalg.svd(weights, compute_uv=False))


def _below_one(descending: NDArray[np.floating[Any]]) -> float:
    second = float(descending[1]) if len(descending) > 1 else 0.0
    return max(0.0, round(1 - second, DIGITS))


def doubly_stochastic(weights: Matrix) -> bool:
    """Whether no weight is negative and all rows and all columns sum to 1, to rounding."""
    sums = np.concatenate([weights.sum(axis=0), weights.sum(axis=1)])
    return bool((weights >= 0).all() and np.allclose(sums, 1, rtol=0, atol=ROUNDING))


def stranger(graph: Graph, n: int) -> tuple[int, int] | None:
    """Workers (j, i) such that nothing that j sends ever reaches i; None in a connected graph."""
    links = np.logical_or.reduce([links_of(weights) for weights in weights_of_period(graph, n)])
    heard_of_first, heard_by_first = reached(links, 0), reached(links.T, 0)
    if not heard_of_first.all():
        return 0, int(heard_of_first.argmin())
    return None if heard_by_first.all() else (int(heard_by_first.argmin()), 0)


def exact_period(graph: Graph, n: int) -> int | None:
    """The least t for which W of round t - 1 times ... times W of round 0 is 1/n everywhere, to rounding.

    None when there is none within a period, or within 64 rounds where that is longer. An error that falls
    by a factor in each round also gets below rounding; the average is exact where it does so in one step.
    """
    for t, error in enumerate(disagreement(graph, n, max(graph.period(n), PATIENCE)), 1):
        if error < ROUNDING:
            return t
        if error < APPROACH:
            return None
    return None


def disagreement(graph: Graph, n: int, rounds: int) -> Iterator[float]:
    """After each round, n times the largest difference between an entry of the product so far and 1/n."""
    cycle = weights_of_period(graph, n)
    mixed = np.eye(n)
    for t in range(rounds):
        mixed = cycle[t % len(cycle)] @ mixed
        yield float(np.abs(n * mixed - 1).max())


def product(rounds: list[Matrix]) -> Matrix:
    """The product of mixing matrices, of which the last acts last."""
    mixed = rounds[0]
    for weights in rounds[1:]:
        mixed = weights @ mixed
    return mixed


def weights_of_period(graph: Graph, n: int) -> list[Matrix]:
    return [graph.weights(n, t) for t in range(graph.period(n))]


def links_of(weights: Matrix) -> Links:
    links = weights > 0
    np.fill_diagonal(links, False)
    return links
