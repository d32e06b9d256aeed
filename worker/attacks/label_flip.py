"""Label flip: data poisoning by wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS


@ATTACKS.register("label_flip")
@dataclass(frozen=True)
class LabelFlip:
    """Label flip: an honest gradient of wrong labels; class y becomes C - 1 - y of C classes.

    With an odd number of classes the middle one keeps its label. Negative labels, which no loss looks at,
    stay.
    """

    def poisons(self, x: Tensor, y: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return x, torch.where(y < 0, y, classes - 1 - y)
