"""How large parameters can have become, without a look at them: a step that cannot fail needs no check."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.server.training.optimizer import Sgd

LARGEST = 1e38
"""A third of the largest float32: room for the rounding of millions of steps."""
BLOCK = 1 << 15
"""Entries that are widened at once, while they are in cache."""


def norm(vector: Tensor) -> float | None:
    """Euclidean norm; None when an entry is not finite. In float64 no finite float32 vector overflows."""
    blocks = vector.split(BLOCK)
    # Not a result of its own for each: such crumbs between the widened blocks keep their memory from being
    # used again, and it comes to half of the vector.
    parts = torch.empty(len(blocks), dtype=torch.float64)
    for block, part in zip(blocks, parts, strict=True):
        torch.linalg.vector_norm(block, dtype=torch.float64, out=part)
    length = torch.linalg.vector_norm(parts).item()
    return length if length < float("inf") else None


@dataclass(frozen=True)
class Bounds:
    """Norms that the parameters and the optimizer's velocity do not exceed, nor does any entry of them."""

    point: float
    velocity: float = 0.0

    @classmethod
    def of(cls, point: Tensor, velocity: Tensor | None) -> Bounds:
        """The norms as they are."""
        lengths = [0.0 if vector is None else norm(vector) for vector in (point, velocity)]
        return cls(*(math.inf if length is None else length for length in lengths))

    @property
    def risky(self) -> bool:
        """Whether an entry may not be finite."""
        return not max(self.point, self.velocity) < LARGEST

    def after(self, sgd: Sgd, length: float, lr: float) -> Bounds:
        """The bounds after one step along a gradient of this length: the triangle inequality."""
        gradient = length + sgd.weight_decay * self.point
        velocity = sgd.momentum * self.velocity + gradient
        along = gradient + sgd.momentum * velocity if sgd.nesterov else velocity
        return Bounds(self.point + lr * along, velocity if sgd.momentum else 0.0)
