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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.numeric.order import network

FEW = 48
"""Values of a column up to which a CPU is faster with a network of comparisons than with a sort."""
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""The halves of an integer of 64 bits in memory."""


@dataclass(frozen=True)
class WeightedWindow:
    """The weighted mean of each column without the weight `cut` at either end."""

    p: tuple[float, ...]
    cut: float

    def requires(self, n: int, f: int) -> None:
        """No condition: the rule that made it has been asked."""

    def columnwise(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        units = _Units.of(self.p, block)
        low = round(self.cut * units.whole)
        high = units.whole - low
        total, taken = torch.zeros_like(block[0], dtype=units.dtype), torch.zeros_like(block[0])
        found = torch.zeros_like(block[0])
        for value, weight in units.ordered(block):
            after = total + weight
            kept = after.clamp(max=high).sub_(total.clamp(min=low))
            kept = kept.masked_fill_(kept <= units.slack, 0).to(block.dtype).div_(high - low)
            found.addcmul_(kept, value)
            taken += kept
            total = after
        largest = torch.finfo(block.dtype).max
        return found.div_(taken).clamp_(-largest, largest)


@dataclass(frozen=True)
class WeightedMedian:
    """The weighted median of each column."""

    p: tuple[float, ...]
    midpoint: bool
    """Where half of the weight lies on either side: halfway between, or else the lower."""

    def requires(self, n: int, f: int) -> None:
        """No condition: the rule that made it has been asked."""

    def columnwise(self, block: Tensor) -> Tensor:
        """(m, b) -> (b,)."""
        units = _Units.of(self.p, block)
        half = units.whole // 2
        total = torch.zeros_like(block[0], dtype=units.dtype)
        low = high = block[0]
        for value, weight in units.ordered(block):
            # Values come in ascending order: the last one that is not beyond the half before it.
            low = torch.where(total < half - units.slack, value, low)
            high = torch.where(total <= half + units.slack, value, high)
            total = total + weight
        return low.clone() if not self.midpoint else low / 2 + high / 2


@dataclass(frozen=True, eq=False)
class _Units:
    """Weights as whole numbers of units."""

    weights: Tensor  # (m,)
    whole: int
    slack: int
    """Units that may be rounding."""

    @classmethod
    def of(cls, p: Sequence[float], block: Tensor) -> _Units:
        """As precise as the values, and more where many share the whole."""
        wide = block.dtype == torch.float64 or len(p) > FEW
        scale = 1 << (50 if wide else 30)
        weights = [round(share * scale) for share in p]
        dtype = torch.int64 if wide else torch.int32
        slack = len(p) + (scale >> 40)
        return cls(torch.tensor(weights, dtype=dtype, device=block.device), sum(weights), slack)

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
