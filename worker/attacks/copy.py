"""Copy: a lazy worker sends the vector of an honest one as its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("copy")
@dataclass(frozen=True)
class Copy:
    """Copy: lazy workers, each of which sends the vector of an honest worker as its own.

    After the lazy clients of "Blockchain Assisted Decentralized Federated Learning (BLADE-FL) with Lazy
    Clients" (Li et al., 2020), who take another's model and hide the copy under Gaussian noise. Attacker r
    copies honest worker r, so that no two copies are the same. `mimic` makes them the same, to give one
    worker the most weight.

    Vector: g_r of honest worker r, plus noise.
    """

    needs: ClassVar[Sight] = "all"
    noise: float = 0.0
    """Length of the noise over that of the vector; 0 sends an exact copy."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"`noise` should be a finite number, at least 0. Found {self.noise}.")

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        vector = knows.honest[knows.rank % len(knows.honest)]
        if not self.noise:
            return vector.clone()
        spread = self.noise * float(torch.linalg.vector_norm(vector, dtype=torch.float64))
        drawn = torch.randn(vector.shape, generator=knows.rng, dtype=torch.float32).to(vector)
        return vector + drawn * (spread / math.sqrt(max(1, len(vector))))
