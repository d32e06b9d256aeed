"""The honest vectors as an attacker measures them: mean, direction p, inner products about the mean.

k  vectors that are seen     d  parameters     c_i = g_i - mean

One pass over the columns, in blocks and in float64, so no second copy of the k vectors is made. Whatever is
asked afterwards of vectors mean + gamma p is a matter of k numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators import Gram

Vector: TypeAlias = NDArray[np.float64]
Direction: TypeAlias = Literal["unit", "std", "sign"]
"""p: against the mean of the honest vectors, against their standard deviation, or against the signs of the
mean."""
LARGEST = torch.finfo(torch.bfloat16).max
COLUMNS = 1 << 16
"""Columns of a block."""
BLIND = "it needs to see at least 2 vectors to know how far they lie apart, and it sees 1"
"""Why an attack that hides within the spread of the honest vectors cannot be mounted."""


@dataclass(frozen=True, eq=False)
class HonestRows:
    """Honest vectors g_1 ... g_k about their mean, and a direction p."""

    mean: Tensor
    """(d,) float64."""
    direction: Tensor
    """(d,) float64: p, not of length 1."""
    inner: Vector
    """(k, k): <c_i, c_j>."""
    along: Vector
    """(k,): <c_i, p>."""
    length: float
    """|p|^2."""
    products: Vector
    """(k,): <c_i, mean>."""
    mean_length: float
    """|mean|^2."""
    mean_along: float
    """<mean, p>."""

    @property
    def squares(self) -> Vector:
        """|c_i|^2, (k,)."""
        return self.inner.diagonal()

    @property
    def sqdist(self) -> Vector:
        """|g_i - g_j|^2, (k, k)."""
        found = self.squares[:, None] + self.squares - 2 * self.inner
        return np.maximum(found, 0)

    def at(self, gamma: float, like: Tensor, base: float = 1.0) -> Tensor:
        """The vector base mean + gamma p, (d,), as another one is in type and device."""
        start = self.mean if base == 1 else base * self.mean
        return sendable(torch.add(start, self.direction, alpha=gamma), like)

    def gram(self, gamma: float, copies: int, base: float = 1.0) -> Gram:
        """The honest rows, then copies of base mean + gamma p."""
        k, apart = len(self.along), base - 1
        sent, origin = slice(k, k + copies), k + copies + 1
        inner = np.zeros((origin + 1, origin + 1))  # about the mean
        inner[:k, :k] = self.inner
        crossed = gamma * self.along + apart * self.products
        inner[:k, sent], inner[sent, :k] = crossed[:, None], crossed
        square = gamma * gamma * self.length + 2 * gamma * apart * self.mean_along
        inner[sent, sent] = square + apart * apart * self.mean_length
        inner[origin, :k] = inner[:k, origin] = -self.products
        inner[origin, sent] = inner[sent, origin] = -gamma * self.mean_along - apart * self.mean_length
        inner[origin, origin] = self.mean_length
        return Gram.about(lambda: torch.from_numpy(inner), k + copies)


def measure(honest: Tensor, direction: Direction) -> HonestRows:
    """Measure vectors (k, d) and the direction p of an attack.

    unit is -mean; its length does not matter, since a strength is found for it. std is minus the standard
    deviation of each coordinate (of a population). sign is -1, 0 or 1 in each coordinate.
    """
    k, d = honest.shape
    mean = torch.empty(d, dtype=torch.float64, device=honest.device)
    towards = torch.empty_like(mean)
    products = torch.zeros(k + 2, k + 2, dtype=torch.float64, device=honest.device)
    for start in range(0, d, COLUMNS):
        part = slice(start, min(start + COLUMNS, d))
        block = honest[:, part].to(torch.float64)
        torch.mean(block, dim=0, out=mean[part])
        points = torch.empty(k + 2, block.shape[1], dtype=torch.float64, device=honest.device)
        centred = torch.sub(block, mean[part], out=points[:k])
        if direction == "std":
            towards[part] = centred.square().mean(dim=0).sqrt_().neg_()
        else:
            towards[part] = mean[part].sign().neg_() if direction == "sign" else -mean[part]
        points[k], points[k + 1] = towards[part], mean[part]
        products += points @ points.T
    found = products.cpu().numpy()
    return HonestRows(
        mean=mean,
        direction=towards,
        inner=found[:k, :k],
        along=found[:k, k],
        length=float(found[k, k]),
        products=found[:k, k + 1],
        mean_length=float(found[k + 1, k + 1]),
        mean_along=float(found[k, k + 1]),
    )


def sendable(vector: Tensor, like: Tensor) -> Tensor:
    """A vector (d,) of float64 in the type of another one, on its device; no number becomes infinite.

    Infinity would prove the fault. Numbers that every format of the wire can hold are kept.
    """
    largest = min(LARGEST, torch.finfo(like.dtype).max)
    return vector.clamp(-largest, largest).to(like)


def same_place(seen: int) -> str | None:
    """The condition of attacks that need a spread, for `requires`."""
    return BLIND if seen < 2 else None
