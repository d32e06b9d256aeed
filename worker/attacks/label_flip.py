"""Label flip: data poisoning by wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS


@ATTACKS.register("label_flip")
@dataclass(frozen=True)
class LabelFlip:
    """Label flip: an honest gradient of wrong labels; class y becomes C - 1 - y of C classes.

    "Data Poisoning Attacks Against Federated Learning Systems" (Tolpegin et al., 2020). With an odd number
    of classes the middle one keeps its label. Negative labels, which no loss looks at, stay.

    Vector: the gradient of labels C - 1 - y.
    """

    rate: float = 1.0
    """Probability that a sample is poisoned."""
    labels: Literal["mirror", "random"] = "mirror"
    """The wrong label: C - 1 - y, or any other class with the same probability."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"`rate` should be above 0 and at most 1. Found {self.rate}.")

    def poisons(self, x: Tensor, y: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        wrong = classes - 1 - y
        if self.labels == "random" and classes > 1:
            wrong = (y + torch.randint(1, classes, y.shape, generator=rng).to(y)) % classes
        keeps = y < 0
        if self.rate < 1:
            chosen = torch.rand(y.shape[:1], generator=rng, dtype=torch.float32) < self.rate
            keeps = keeps | ~chosen.to(y.device).view(-1, *[1] * (y.dim() - 1))
        return x, torch.where(keeps, y, wrong)
