"""Normalised gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varangian.server.training.optimizers.base import LARGEST, OPTIMIZERS, Fraction, Optimizer, Positive
from varangian.server.training.optimizers.without_compiler import plain_class
from varangian.server.training.parameters import norm


@OPTIMIZERS.register("normalized_sgd")
@dataclass(frozen=True, kw_only=True)
class NormalizedSgd(Optimizer):
    """Normalised gradient descent: every step is as long as the learning rate, x <- x - lr m / |m|.

    Without `momentum` m is the aggregate, as in Byz-NSGDM ("Byzantine-Robust Optimization under (L0,
    L1)-Smoothness", arXiv 2603.12512), where workers send momenta (`worker.momentum`) and NNM stands before
    the rule. Only the direction of the aggregate counts: an attack cannot lengthen a step or stop it by a
    short aggregate, and the step does not shrink near an optimum, so that the schedule has to. An aggregate
    of length 0 has no direction, and the parameters stay.
    """

    longest = LARGEST
    lr: Positive = 0.1
    """Length of a step, in the units of the parameters."""
    momentum: Fraction = 0.0
    """Decay rate b of the mean of aggregates, m <- b m + (1 - b) g, which is normalised in place of g."""

    @property
    def vectors(self) -> int:
        return int(self.momentum > 0)

    def reach(self, longest: float) -> float:
        return 1.0

    def build(self, parameter: Tensor) -> torch.optim.Optimizer:
        return plain_class(_NormalizedSgd)(parameter, self)  # type: ignore[no-any-return]


class _NormalizedSgd(torch.optim.Optimizer):
    """`NormalizedSgd` as an optimizer of torch, for one vector."""

    def __init__(self, parameter: Tensor, settings: NormalizedSgd) -> None:
        super().__init__([parameter], {"lr": settings.lr})
        self._settings, self._parameter = settings, parameter
        if settings.momentum:
            self.state[parameter] = {"mean": torch.zeros_like(parameter)}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        point, momentum = self._parameter, self._settings.momentum
        direction = point.grad
        if direction is None:
            return
        if momentum:
            direction = self.state[point]["mean"].lerp_(direction, 1 - momentum)
        length = norm(direction)
        if length:  # None is not finite: the `Stepper` refuses the mean
            # Divided by its root twice: a float32 may hold neither the length nor its inverse.
            root = math.sqrt(length)
            divisor = torch.tensor(root, dtype=point.dtype, device=point.device)
            point.addcdiv_(direction, divisor, value=-self.param_groups[0]["lr"] / root)
