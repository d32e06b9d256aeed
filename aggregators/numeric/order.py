"""Order statistics of a few rows and many columns, by a network of pairwise minima and maxima.

A comparison of two rows is one vectorised pass; `torch.sort` along so short a side is several times slower.
Most columnwise rules are one of three descriptions, which native kernels execute.

m  values of a column     b  columns of a block
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The mean of the values of rank `lo` (0 is the least) to `hi` - 1."""

    lo: int
    hi: int

    def __call__(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        return _mean(ordered(block, self.lo, self.hi - 1))


@dataclass(frozen=True)
class Nearest:
    """The mean of the `count` values nearest to the mean of ranks `lo` to `hi` - 1.

    Of two that are equally near on either side it is the smaller.
    """

    count: int
    lo: int
    hi: int

    def __call__(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        lanes = ordered(block, 0, len(block) - 1)
        centre = _mean(lanes[self.lo : self.hi])
        # The nearest are neighbours in sorted order: start with the least `count` values, and replace each
        # by the one `count` ranks above it while that is nearer. Nothing is subtracted from a sum. Of the
        # two distances at most one overflows, the longer one.
        kept = lanes[: self.count]
        for i, value in enumerate(lanes[self.count :]):
            least = kept[i % self.count]
            kept[i % self.count] = torch.where(value - centre < centre - least, value, least)
        return _mean(kept)


@dataclass(frozen=True)
class Majority:
    """The sign that most values have, times `scale`; 0 for a tie. A value of 0 has no vote."""

    scale: float

    def __call__(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        return self.scale * block.sign().sum(dim=0).sign()


Order: TypeAlias = Window | Nearest | Majority


def _mean(lanes: Sequence[Tensor]) -> Tensor:
    """The mean of each column, also where the sum is more than the largest float."""
    if len(lanes) == 1:
        return lanes[0]
    total = lanes[0] + lanes[1]
    for lane in lanes[2:]:
        total += lane
    if bool(total.isfinite().all()):
        return total.div_(len(lanes))
    largest = torch.finfo(total.dtype).max
    shares = torch.stack([lane / len(lanes) for lane in lanes])
    return shares.sum(dim=0).clamp(-largest, largest)


def ordered(block: Tensor, first: int, last: int) -> list[Tensor]:
    """Values of rank `first` (0 is the least) to `last`, included, of each column: (n, b) -> (b,) each."""
    lanes = list(block.unbind(0))
    for i, j, low, high in network(len(lanes), first, last):
        a, b = lanes[i], lanes[j]
        if low:
            lanes[i] = torch.minimum(a, b)
        if high:
            lanes[j] = torch.maximum(a, b)
    return lanes[first : last + 1]


@cache
def network(n: int, first: int, last: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """The comparators of a selection network: (i, j, minimum to i needed, maximum to j needed), in order.

    Batcher's odd-even merge sort, without the comparators on which the wanted ranks do not depend.
    """
    needed = set(range(first, last + 1))
    kept: list[tuple[int, int, bool, bool]] = []
    for _, i, j in reversed(list(comparators(n))):
        low, high = i in needed, j in needed
        if low or high:
            kept.append((i, j, low, high))
            needed |= {i, j}
    return tuple(reversed(kept))


def comparators(n: int) -> Iterator[tuple[int, int, int]]:
    """Batcher's odd-even merge sort: (run, low, high), where row `low` takes the smaller value.

    `run` is the length of the sorted runs that are merged.

    Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M, for any n.
    """
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        yield p, i, i + k
            k //= 2
        p *= 2
