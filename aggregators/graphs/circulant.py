"""Circulant graphs: every worker has the same neighbours, counted from its own place in the circle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from varangian.aggregators.graphs.base import GRAPHS, Matrix, check_n

LEAST = 2
"""Fewest workers: with one there is no link."""


class Circulant(ABC):
    """Circulant graph: worker i hears from i - s, modulo n, for every shift s, all with the same weight.

    In-degree and out-degree are equal, so the weights are doubly stochastic.
    """

    @abstractmethod
    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        """The shifts of round t; those that are equal modulo n count once, 0 does not count."""

    def period(self, n: int) -> int:
        return 1

    def weights(self, n: int, t: int) -> Matrix:
        hops, receivers = self._hops(n, t), np.arange(n)
        weights = np.zeros((n, n))
        for hop in (0, *hops):
            weights[receivers, (receivers - hop) % n] = 1 / (len(hops) + 1)
        return weights

    def neighbours(self, n: int, i: int, t: int) -> tuple[int, ...]:
        assert 0 <= i < n, f"there is no worker {i} of {n}"
        return tuple(sorted((i - hop) % n for hop in self._hops(n, t)))

    def _hops(self, n: int, t: int) -> list[int]:
        check_n(self, n, LEAST)
        return sorted({shift % n for shift in self.shifts(n, t)} - {0})


def log2_up(n: int) -> int:
    """The least k with 2^k >= n."""
    return (n - 1).bit_length()


@GRAPHS.register("complete")
@dataclass(frozen=True)
class Complete(Circulant):
    """Complete graph: every worker hears all others; a round averages exactly, for n (n - 1) messages."""

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        return tuple(range(1, n))


@GRAPHS.register("ring")
@dataclass(frozen=True)
class Ring(Circulant):
    """Ring: every worker hears its two neighbours; the fewest links, and slow from a dozen workers on."""

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        return 1, n - 1


@GRAPHS.register("exponential")
@dataclass(frozen=True)
class Exponential(Circulant):
    """Static exponential graph: every worker hears those 1, 2, 4, ... places before it.

    For even n the spectral gap 1 - rho is 2 / (1 + log2 n, rounded up).

    "Exponential Graph is Provably Efficient for Decentralized Deep Training" (Ying et al., 2021).
    """

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        return tuple(2**k for k in range(log2_up(n)))


@GRAPHS.register("one_peer")
@dataclass(frozen=True)
class OnePeer(Circulant):
    """One-peer exponential graph: one message per round, from 1, 2, 4, ... places before in turn.

    "Exponential Graph is Provably Efficient for Decentralized Deep Training" (Ying et al., 2021). With n a
    power of two, log2 n rounds average exactly.
    """

    def period(self, n: int) -> int:
        check_n(self, n, LEAST)
        return log2_up(n)

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        return (2 ** (t % log2_up(n)),)


@GRAPHS.register("chord")
@dataclass(frozen=True)
class Chord(Circulant):
    """Chord: every worker hears those n/2, n/4, ..., 1 places before it, rounded down.

    As in the distributed hash table of Stoica et al. (2001) and in the code of "ASAP: Asynchronous
    Approximate Data-Parallel Computation" (Kadav and Kruus, 2016). With n a power of two it is
    `exponential`.
    """

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        return tuple(n >> k for k in range(1, n.bit_length()))
