"""Extreme scale: finite values whose squares overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive


@ATTACKS.register("extreme_scale")
@dataclass(frozen=True)
class ExtremeScale:
    """Extreme scale: the honest vector times 1e30, finite, but with squares that overflow.

    Coordinates that would overflow stop at the largest finite number.

    Vector: 1e30 g, cut off at the largest finite number.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "own"
    scale: float = 1e30

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        largest = torch.finfo(own.dtype).max
        # In float64 the product exists, and so does its sign.
        return (self.scale * own.double()).clamp(-largest, largest).to(own.dtype)
