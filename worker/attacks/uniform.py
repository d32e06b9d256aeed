"""Uniform noise in place of the vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Uniform noise on [0, 1): the "random" attack of the Flag Aggregator's experiments.

    The vectors of different attackers are not orthogonal: they share the mean 1/2, and so a cosine of 3/4.
    Their length sqrt(d / 3) is usually many times that of a gradient.

    Vector: each coordinate from U[0, 1).
    Source: the "random" attack in the experiments of the Flag Aggregator (Almasi et al., 2024).
    """

    needs: ClassVar[Sight] = "own"

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        return torch.rand(own.shape, generator=knows.rng, dtype=own.dtype).to(own.device)
