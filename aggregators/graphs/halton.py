"""Circulant graph with shifts from a low-discrepancy (Halton) sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varangian.aggregators.graphs.base import GRAPHS
from varangian.aggregators.graphs.circulant import Circulant


@GRAPHS.register("halton")
@dataclass(frozen=True)
class Halton(Circulant):
    """Halton graph: every worker hears log2 n (rounded down) others, spread by a Halton sequence.

    Both variants are in the code of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and
    Kruus, 2016).
    """

    variant: Literal["shifted", "original"] = "shifted"
    """`shifted` starts the sequence where it gives 1, so that the graph is connected for every n.
    `original` starts at 1/2, or at 1/3 when n is a power of two; it is disconnected for n = 12 and 24, for
    example, and then refused."""

    def shifts(self, n: int, t: int) -> tuple[int, ...]:
        count = n.bit_length() - 1
        if self.variant == "original":
            base = 3 if n & (n - 1) == 0 else 2
            return tuple(scaled(n, base, index) or n - 1 for index in range(1, count + 1))
        first = 2 ** (count - 1)
        # Beyond n numbers the sequence starts again.
        return tuple(scaled(n, 2, (first - 1 + k) % n + 1) for k in range(count))


def scaled(n: int, base: int, index: int) -> int:
    """Element `index` (from 1) of the van der Corput sequence times n, rounded down, exactly."""
    mirrored, power = 0, 1
    while index > 0:
        index, digit = divmod(index, base)
        mirrored, power = mirrored * base + digit, power * base
    return n * mirrored // power
