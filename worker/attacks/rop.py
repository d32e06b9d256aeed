"""Relocated orthogonal perturbation (ROP): an attack on rules that measure from the last aggregate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from varangian.worker.attacks.alie import step as usual_step
from varangian.worker.attacks.alie import z_max
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.geometry import rms_distance, unit


class LastRound(NamedTuple):
    """The memory of attackers: the round before."""

    model: Tensor
    length: float
    """Of the mean of the vectors that they saw."""


@ATTACKS.register("rop")
@dataclass(frozen=True)
class Rop:
    """Relocated orthogonal perturbation (ROP): beside the last aggregate, across the honest direction.

    "Byzantines Can Also Learn From History: Fall of Centered Clipping in Federated Learning" (Ozfatura et
    al., 2023). With the mean of the vectors that are seen and the last aggregate D, the perturbation is a
    vector of ones without its part along lam D + (1 - lam) mean, turned towards it by `theta`. It is added
    to pi D + (1 - pi) mean: near the point that centred clipping measures from, so nothing of it is cut.
    Its direction hardly changes from round to round, so momentum adds it up. D is known from the models
    that the server sends: the last step, as long as the mean of the round before.

    Vector: pi D + (1 - pi) mean + z w, with w across lam D + (1 - lam) mean turned by theta, D the
    last aggregate.
    """

    needs: ClassVar[Sight] = "colluders"
    joint: ClassVar[bool] = True
    z: float | None = None
    """Length of the perturbation, in root mean square distances of the seen vectors to their mean. Null is
    the z of ALIE for n and f; in the authors' code it is a length by itself."""
    theta: float = 90.0
    """Degrees between the perturbation and lam D + (1 - lam) mean; above 90 it points backwards."""
    lam: float = 0.9
    """Share of the last aggregate in the direction that the perturbation is across, from 0 to 1."""
    pi: float = 1.0
    """Share of the last aggregate in the point that is perturbed, from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("z", "theta"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"`{name}` should be a finite number. Found {value}.")
        for name in ("lam", "pi"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` should be from 0 to 1. Found {getattr(self, name)}.")

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if seen < 2:
            return "it needs to see at least 2 vectors to know their spread, and it sees 1"
        if self.z is None and not math.isfinite(z_max(n, f)):
            return f"z_max has no value for n = {n} and f = {f}; give it a z"
        return None

    def start(self) -> LastRound | None:
        return None

    def step(self, own: Tensor, knows: Knowledge, memory: LastRound | None) -> tuple[Tensor, LastRound]:
        mean = knows.honest.mean(dim=0)
        last = mean if memory is None else _aggregate(knows.model, memory).to(mean)
        across = unit(last.lerp(mean, 1 - self.lam))
        ones = torch.ones_like(mean)
        turned = unit(ones - (ones @ across) * across) * math.sin(math.radians(self.theta))
        turned += across * math.cos(math.radians(self.theta))
        z = usual_step(knows.n, knows.f) if self.z is None else self.z
        sent = torch.add(mean.lerp(last, self.pi), turned, alpha=z * rms_distance(knows.honest))
        return sent, LastRound(knows.model.clone(), float(torch.linalg.vector_norm(mean)))


def _aggregate(model: Tensor, before: LastRound) -> Tensor:
    """The last aggregate, from the step that the server took against it."""
    return unit(before.model - model) * before.length
