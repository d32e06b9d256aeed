"""What the server does with an aggregate: SGD, and how its learning rate changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from varangian.registry import Registry

BLOCK = 1 << 16
"""Entries of one piece of a step: 256 KiB of each vector."""


@runtime_checkable
class Schedule(Protocol):
    """How the learning rate depends on the round."""

    def factor(self, round: int, rounds: int, /) -> float:
        """What the learning rate of round 0, 1, ... rounds - 1 is multiplied by."""
        ...


SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant:
    """The same learning rate in every round."""

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@SCHEDULES.register("step")
@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """The learning rate is multiplied by `gamma` after every `every` rounds."""

    every: int
    gamma: float

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"`every` should be at least 1. Found {self.every}.")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"`gamma` should be above 0 and at most 1. Found {self.gamma}.")

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** (round // self.every))


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine, from 1 in round 0 towards `final` after the last round.

    "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov and Hutter, 2017), without restarts.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(f"`final` should be between 0 and 1. Found {self.final}.")

    def factor(self, round: int, rounds: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * round / rounds)) / 2


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent whose gradient is the aggregate."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"`lr` should be a positive number. Found {self.lr}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` should be at least 0 and below 1. Found {self.momentum}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` should not be negative. Found {self.weight_decay}.")
        if self.nesterov and self.momentum == 0:
            raise ValueError("`momentum` should be above 0 with `nesterov`. Found 0.")

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of one round."""
        return self.lr * self.schedule.factor(round, rounds)


class Stepper:
    """What an `Sgd` does, and the velocity that it remembers.

    The same numbers as `torch.optim.SGD`, bit for bit, without what that imports and copies: block by
    block, so that what lies between gradient and parameters stays in cache.
    """

    def __init__(self, sgd: Sgd) -> None:
        self._sgd = sgd
        self.velocity: Tensor | None = None
        """(d,); None before the first step, and always without momentum."""

    def step(self, point: Tensor, gradient: Tensor, lr: float, out: Tensor) -> None:
        """Write to `out` where one step leads from `point`; all (d,) float32, and only `out` changes."""
        started = self.velocity is not None
        if self._sgd.momentum and not started:
            self.velocity = torch.empty_like(gradient)
        for start in range(0, len(point), BLOCK):
            at = slice(start, start + BLOCK)
            along = self._along(point[at], gradient[at], at, started)
            torch.add(point[at], along, alpha=-lr, out=out[at])

    def _along(self, point: Tensor, gradient: Tensor, at: slice, started: bool) -> Tensor:
        """The direction of some of the entries; moves their velocity."""
        sgd = self._sgd
        if sgd.weight_decay:
            gradient = gradient.add(point, alpha=sgd.weight_decay)
        if self.velocity is None:
            return gradient
        velocity = self.velocity[at]
        if started:
            velocity.mul_(sgd.momentum).add_(gradient)
        else:
            velocity.copy_(gradient)
        return gradient.add(velocity, alpha=sgd.momentum) if sgd.nesterov else velocity
