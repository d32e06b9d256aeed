"""Order statistics of columns whose values have weights: trimmed means and medians by weight.

Weights are integers, shares of about 2^30 or 2^50: their running sums are exact, so that nothing is left of
a value that is cut but a few units, which are dropped. A rounding error must not be multiplied by a number
that a Byzantine row chose.

m  values of a column     b  columns of a block
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.numeric.order import network

FEW = 48
"""Values of a column up to which a CPU is faster with a network of comparisons than with a sort."""
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""The halves of an integer of 64 bits in memory."""


Kind: TypeAlias = Literal["window", "median", "lower median"]


class Plan(NamedTuple):
    """A statistic by weight in whole numbers, as kernels carry it out.

    Values come in ascending order, and `before` is the weight of those before a value.
    """

    weights: tuple[int, ...]
    """Of each row, in units."""
    low: int
    """Window: where it begins. Median: the lower one is the last value with `before < low`."""
    high: int
    """Window: where it ends. Median: the upper one is the last value with `before <= high`."""
    slack: int
    """Units that may be rounding: a value of which no more lies in the window is left out."""
    kind: Kind
    """A median is halfway between the lower and the upper one, or else the lower."""


@dataclass(frozen=True)
class WeightedWindow:
    """The weighted mean of each column without the weight `cut` at either end."""

    p: tuple[float, ...]
    cut: float

    def requires(self, n: int, f: int) -> None:
        """No condition: the rule that made it has been asked."""

    def order(self, m: int) -> WeightedWindow:
        """Itself: it is a description that native kernels execute."""
        return self

    def plan(self, wide: bool = False) -> Plan:
        """In units of 2^-30, or of 2^-50 if `wide`; where nearly all is cut, the median is what is left."""
        weights, whole, slack = _units(self.p, wide)
        low = round(self.cut * whole)
        if whole - 2 * low <= len(weights) * slack:
            return WeightedMedian(self.p, midpoint=True).plan(wide)
        return Plan(weights, low, whole - low, slack, "window")

    def columnwise(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        return _reduced(self.plan(is_wide(len(self.p), block.dtype)), block)

    def __call__(self, block: Tensor) -> Tensor:
        return self.columnwise(block)


@dataclass(frozen=True)
class WeightedMedian:
    """The weighted median of each column."""

    p: tuple[float, ...]
    midpoint: bool
    """Where half of the weight lies on either side: halfway between, or else the lower."""

    def requires(self, n: int, f: int) -> None:
        """No condition: the rule that made it has been asked."""

    def order(self, m: int) -> WeightedMedian:
        """Itself: it is a description that native kernels execute."""
        return self

    def plan(self, wide: bool = False) -> Plan:
        """In units of 2^-30, or of 2^-50 if `wide`."""
        weights, whole, slack = _units(self.p, wide)
        half = whole // 2
        return Plan(
            weights, half - slack, half + slack, slack, "median" if self.midpoint else "lower median"
        )

    def columnwise(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        return _reduced(self.plan(is_wide(len(self.p), block.dtype)), block)

    def __call__(self, block: Tensor) -> Tensor:
        return self.columnwise(block)


WeightedOrder: TypeAlias = WeightedWindow | WeightedMedian


def is_wide(m: int, dtype: torch.dtype) -> bool:
    """Whether weights are as precise as float64: for such values, and where many share the whole."""
    return dtype == torch.float64 or m > FEW


@cache
def _units(p: tuple[float, ...], wide: bool) -> tuple[tuple[int, ...], int, int]:
    """Weights as whole numbers of units, their sum, and how many units may be rounding."""
    scale = 1 << (50 if wide else 30)
    weights = tuple(round(share * scale) for share in p)
    return weights, sum(weights), len(p) + (scale >> 40)


def _reduced(plan: Plan, block: Tensor) -> Tensor:
    dtype = torch.int64 if is_wide(len(plan.weights), block.dtype) else torch.int32
    units = _Units(torch.tensor(plan.weights, dtype=dtype, device=block.device))
    return _window(plan, units, block) if plan.kind == "window" else _median(plan, units, block)


def _window(plan: Plan, units: _Units, block: Tensor) -> Tensor:
    low, high = plan.low, plan.high
    total, taken = torch.zeros_like(block[0], dtype=units.dtype), torch.zeros_like(block[0])
    found = torch.zeros_like(block[0])
    for value, weight in units.ordered(block):
        after = total + weight
        kept = after.clamp(max=high).sub_(total.clamp(min=low))
        kept = kept.masked_fill_(kept <= plan.slack, 0).to(block.dtype).div_(high - low)
        found.addcmul_(kept, value)
        taken += kept
        total = after
    largest = torch.finfo(block.dtype).max
    return found.div_(taken).clamp_(-largest, largest)


def _median(plan: Plan, units: _Units, block: Tensor) -> Tensor:
    total = torch.zeros_like(block[0], dtype=units.dtype)
    low = high = block[0]
    for value, weight in units.ordered(block):
        low = torch.where(total < plan.low, value, low)
        high = torch.where(total <= plan.high, value, high)
        total = total + weight
    return low.clone() if plan.kind == "lower median" else low / 2 + high / 2


@dataclass(frozen=True, eq=False)
class _Units:
    """Weights as whole numbers of units."""

    weights: Tensor  # (m,)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def ordered(self, block: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        """The values of each column in ascending order, each with its weight: m pairs of (b,)."""
        if block.device.type == "cpu" and block.dtype == torch.float32 and len(block) <= FEW:
            return self._networked(block.numpy())
        values, order = block.sort(dim=0, stable=True)
        return [*zip(values.unbind(), self.weights[order].unbind(), strict=True)]

    def _networked(self, block: NDArray[np.float32]) -> Sequence[tuple[Tensor, Tensor]]:
        """By a network of comparisons, of numbers that are a value and, in their last bits, its place."""
        m, width = block.shape
        keys = np.empty((m + 1, width), dtype=np.int64)  # one lane is spare
        halves = keys.view(np.int32).reshape(m + 1, width, 2)
        halves[:m, :, HIGH] = _reordered(block.view(np.int32))
        halves[:m, :, LOW] = np.arange(m, dtype=np.int32)[:, None]
        lanes, spare = [*range(m)], m
        for i, j, _, _ in network(m, 0, m - 1):
            a, b = lanes[i], lanes[j]
            np.minimum(keys[a], keys[b], out=keys[spare])
            np.maximum(keys[a], keys[b], out=keys[b])
            lanes[i], spare = spare, a
        weights = self.weights.numpy()
        return [
            (
                torch.from_numpy(_reordered(halves[lane, :, HIGH]).view(np.float32)),
                torch.from_numpy(weights.take(halves[lane, :, LOW])),
            )
            for lane in lanes
        ]


def _reordered(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """The bits of floats as integers in the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
