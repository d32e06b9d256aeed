"""NumPy fallback for median and trimmed mean: sorting networks on blocks of columns, in place.

A lane is one place of the network for a strip of columns; a step is one call of numpy on two lanes. A call
of numpy costs a third of torch's, and none of these allocates. Strips are as wide as the second-level cache
allows; wider ones and narrower ones are slower.

n  rows     b  columns of a strip
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window, comparators

Lane: TypeAlias = NDArray[np.float32]
Wish: TypeAlias = Literal["alone", "summed", "nothing"]
Step: TypeAlias = tuple[Callable[..., Any], int, int, int]

WIDTH = 1 << 14
"""Columns of a strip: wide enough for the price of a call, narrow enough for the cache."""


@dataclass(frozen=True)
class Network:
    """A sorting network as steps (ufunc, a, b, out) on lanes; the first n lanes are the rows, read-only."""

    steps: tuple[Step, ...]
    lanes: int
    """The number of lanes, those of the rows included."""
    places: tuple[int, ...]
    """The lane that ends with each rank; ranks that are only summed are in any order among themselves."""


@cache
def network(wishes: tuple[Wish, ...]) -> Network:
    """The network that brings the values of the wanted ranks to their places."""
    n = len(wishes)
    places, free, steps, lanes = list(range(n)), list[int](), list[Step](), n
    for i, j, low, high in _needed(wishes):
        a, b = places[i], places[j]
        own = [lane for lane in (a, b) if lane >= n]
        if low and high and not free:
            free, lanes = [lanes], lanes + 1
        if low and high:
            places[i] = free.pop()
            steps.append((np.minimum, a, b, places[i]))
        if not own and not free:
            free, lanes = [lanes], lanes + 1
        out = own.pop() if own else free.pop()
        steps.append((np.maximum if high else np.minimum, a, b, out))
        places[j if high else i] = out
        free += own
    return Network(tuple(steps), lanes, tuple(places))


def _needed(wishes: Sequence[Wish]) -> list[tuple[int, int, bool, bool]]:
    """Comparators (i, j, whether the minimum to i is needed, whether the maximum to j is), in order.

    Every block is merged as soon as its halves are, while they are in cache. A comparison of two values
    that are only summed, or both of no use, is left out.
    """
    kept, wanted = list[tuple[int, int, bool, bool]](), list(wishes)
    blocks = {(run, i, j): (i // (2 * run) + 1) * 2 * run for run, i, j in comparators(len(wishes))}
    order = sorted(blocks, key=lambda step: (min(blocks[step], len(wishes)), step[0]))
    for _, i, j in reversed(order):
        if wanted[i] == wanted[j] != "alone":
            continue
        kept.append((i, j, wanted[i] != "nothing", wanted[j] != "nothing"))
        wanted[i] = wanted[j] = "alone"
    return kept[::-1]


@contextmanager
def subnormals_as_zero() -> Generator[bool]:
    """Let this thread's processor read subnormal numbers as zero; yields whether it can."""
    before = bool(np.add(_SUBNORMAL, _SUBNORMAL)[0] == 0)
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(before)


_SUBNORMAL = np.array([1], dtype=np.int32).view(np.float32)


class Reducer:
    """Reduces strips of n rows; for one thread, since it holds the lanes that are written to."""

    def __init__(self, rule: Order, n: int) -> None:
        self._rule = rule
        self._network = network(_wishes(rule, n))
        spare = self._network.lanes - n + 2
        self._own = np.empty((spare, WIDTH), dtype=np.float32)

    def __call__(self, rows: Sequence[Lane], out: Lane) -> bool:
        """Writes the statistic of every column (b,); False where a sum is more than the largest float."""
        if isinstance(self._rule, Majority):
            np.multiply(_votes(rows), np.float32(self._rule.scale), out=out)
            return True
        lanes = [*rows, *(lane[: len(out)] for lane in self._own)]
        for step, a, b, to in self._network.steps:
            step(lanes[a], lanes[b], out=lanes[to])
        ranks = [lanes[place] for place in self._network.places]
        if isinstance(self._rule, Window):
            return _mean(ranks[self._rule.lo : self._rule.hi], out)
        return _nearest(self._rule, ranks, lanes[-2:], out)


def _wishes(rule: Order, n: int) -> tuple[Wish, ...]:
    wishes: list[Wish] = ["nothing"] * n
    if isinstance(rule, Window):
        wishes[rule.lo : rule.hi] = ["summed"] * (rule.hi - rule.lo)
    if isinstance(rule, Nearest):
        wishes = ["alone"] * n  # it says in which order values are added
    return tuple(wishes)


def _nearest(rule: Nearest, ranks: list[Lane], spare: list[Lane], out: Lane) -> bool:
    """As `Nearest`; chooses between two values by their bits, as a mask takes ten times as long."""
    centre, apart = spare
    if not _mean(ranks[rule.lo : rule.hi], centre):
        return False
    for i, value in enumerate(ranks[rule.count :]):
        least = ranks[i % rule.count]
        np.subtract(value, centre, out=out)
        np.subtract(centre, least, out=apart)
        np.subtract(out, apart, out=apart)
        nearer, bits = apart.view(np.int32), least.view(np.int32)
        np.right_shift(nearer, 31, out=nearer)  # all ones where the difference is negative
        np.bitwise_xor(bits, value.view(np.int32), out=out.view(np.int32))
        np.bitwise_and(out.view(np.int32), nearer, out=nearer)
        np.bitwise_xor(bits, nearer, out=bits)
    return _mean(ranks[: rule.count], out)


def _mean(lanes: Sequence[Lane], out: Lane) -> bool:
    """Write the mean; False where it overflowed. Adding zero to a single lane flushes subnormal numbers."""
    np.add(lanes[0], lanes[1] if len(lanes) > 1 else 0, out=out)
    for lane in lanes[2:]:
        np.add(out, lane, out=out)
    if len(lanes) == 1:
        return True
    np.divide(out, len(lanes), out=out)
    return bool(np.isfinite(out.sum()))


def _votes(rows: Sequence[Lane]) -> NDArray[Any]:
    """The sign that most values of each column have, (b,)."""
    votes = np.zeros(len(rows[0]), dtype=np.int8 if len(rows) < 128 else np.int32)
    voting = np.empty(len(votes), dtype=bool)
    for row in rows:
        np.greater(row, 0, out=voting)
        np.add(votes, voting.view(np.int8), out=votes)
        np.less(row, 0, out=voting)
        np.subtract(votes, voting.view(np.int8), out=votes)
    np.sign(votes, out=votes)
    return votes


def finite(rows: Sequence[Lane], spare: Lane) -> bool:
    """Whether all numbers of a strip are."""
    np.add(rows[0], 0, out=spare)
    for row in rows[1:]:
        np.add(spare, row, out=spare)
    return bool(np.isfinite(spare.sum())) or all(bool(np.isfinite(row).all()) for row in rows)
