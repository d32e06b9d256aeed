"""Order statistics of a few rows and many columns, by a network of pairwise minima and maxima.

A comparison of two rows is one vectorised pass; `torch.sort` along so short a side is several times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor


def ordered(block: Tensor, first: int, last: int) -> list[Tensor]:
    """The values of rank first (0 is the least) to last, included, in each column: (n, b) -> (b,) each."""
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
    """Comparators (i, j, whether the minimum to i is needed, whether the maximum to j is), in order.

    Batcher's odd-even merge sort, without what the wanted ranks do not depend on.
    """
    needed = set(range(first, last + 1))
    kept: list[tuple[int, int, bool, bool]] = []
    for i, j in reversed(list(_batcher(n))):
        low, high = i in needed, j in needed
        if low or high:
            kept.append((i, j, low, high))
            needed |= {i, j}
    return tuple(reversed(kept))


def _batcher(n: int) -> Iterator[tuple[int, int]]:
    """Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M, for any n."""
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        yield i, i + k
            k //= 2
        p *= 2
