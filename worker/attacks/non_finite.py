"""Non-finite values: NaN or infinity in every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("non_finite")
@dataclass(frozen=True)
class NonFinite:
    """Non-finite values: NaN or infinity in every coordinate; one such vector spoils an unchecked mean.

    Vector: NaN, or infinity, in every coordinate.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "own"
    value: Literal["nan", "inf", "-inf"] = "nan"

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        return torch.full_like(own, float(self.value))
