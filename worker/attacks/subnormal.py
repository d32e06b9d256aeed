"""Subnormal numbers: an attack on processor time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight

TINY = torch.finfo(torch.float32).tiny


@ATTACKS.register("subnormal")
@dataclass(frozen=True)
class Subnormal:
    """Subnormal numbers: the same subnormal float32 in every coordinate, an attack on processor time.

    Processors calculate with such numbers up to a hundred times slower. The vector is harmless otherwise.

    Vector: 1e-40 in every coordinate.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "own"
    value: float = 1e-40

    def __post_init__(self) -> None:
        if not 0 < abs(self.value) < TINY:
            raise ValueError(f"`value` should be subnormal: not 0, and below {TINY}. Found {self.value}.")

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        return torch.full_like(own, self.value)
