"""Learning rate schedules: the learning rate of each round of a run, by name.

A schedule is a function of the round and holds no state, so a run that is resumed needs nothing of it.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from varangian.registry import Registry

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler


class Schedule(ABC):
    """A learning rate schedule: the learning rate as a function of the round."""

    @abstractmethod
    def factor(self, round: int, rounds: int) -> float:
        """The factor of the learning rate in round 0, 1, ... rounds - 1."""

    def rate(self, lr: float, round: int, rounds: int) -> float:
        """The learning rate of a round, where `lr` is the one that was set."""
        return lr * self.factor(round, rounds)


SCHEDULES: Registry[Schedule] = Registry("schedule")


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` should be {rule}. Found {value}.")


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """Constant: the same learning rate in every round."""

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@SCHEDULES.register("step")
@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """Step decay: the learning rate is multiplied by `gamma` after every `every` rounds."""

    every: int
    gamma: float

    def __post_init__(self) -> None:
        _check("every", self.every, self.every >= 1, "at least 1")
        _check("gamma", self.gamma, 0 < self.gamma <= 1, "above 0 and at most 1")

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** (round // self.every))


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine annealing: a factor that falls along half a cosine, from 1 in round 0 to `final` at the end.

    "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov and Hutter, 2017), without restarts.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        _check("final", self.final, 0 <= self.final <= 1, "between 0 and 1")

    def factor(self, round: int, rounds: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * round / rounds)) / 2


class TorchSchedule(Schedule):
    """A schedule of `torch.optim.lr_scheduler`, with the numbers of torch to the bit."""

    @abstractmethod
    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        """The scheduler of torch, made for a run of so many rounds."""

    def factor(self, round: int, rounds: int) -> float:
        return self.rate(1.0, round, rounds)

    def rate(self, lr: float, round: int, rounds: int) -> float:
        return _rates(self, lr, rounds)[round]


@functools.lru_cache(maxsize=8)
def _rates(schedule: TorchSchedule, lr: float, rounds: int) -> tuple[float, ...]:
    """The learning rates of all rounds: schedulers of torch can only go from one to the next."""
    optimizer = _Rate(lr)
    scheduler, rates = schedule.scheduler(optimizer, rounds), list[float]()
    for _ in range(rounds):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return tuple(rates)


class _Rate(torch.optim.Optimizer):
    """An optimizer that does nothing but have a learning rate, for the schedulers of torch."""

    def __init__(self, lr: float) -> None:
        super().__init__([torch.zeros(1, dtype=torch.float32)], {"lr": lr})

    # Without the decorator that imports torch's compiler, which takes seconds and 150 MB.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@SCHEDULES.register("exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential(TorchSchedule):
    """Exponential decay: multiplied by `gamma` after every round (`ExponentialLR` of torch)."""

    gamma: float

    def __post_init__(self) -> None:
        _check("gamma", self.gamma, 0 < self.gamma <= 1, "above 0 and at most 1")

    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)


@SCHEDULES.register("multi_step")
@dataclass(frozen=True, kw_only=True)
class MultiStep(TorchSchedule):
    """Multi-step decay: multiplied by `gamma` at each of the milestones (`MultiStepLR` of torch)."""

    milestones: tuple[int, ...]
    """Rounds at which the learning rate changes, ascending."""
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check("gamma", self.gamma, 0 < self.gamma <= 1, "above 0 and at most 1")
        if [*self.milestones] != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(
                f"`milestones` should be different rounds from 1, ascending. Found {[*self.milestones]}."
            )

    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [*self.milestones], self.gamma)


@SCHEDULES.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(TorchSchedule):
    """Linear decay: a straight line from the learning rate to a fraction of it (`LinearLR` of torch)."""

    final: float = 0.0
    """The factor after the last of `length` rounds; it stays from there on."""
    length: int | None = None
    """Rounds of the decay; null is all rounds of the run."""

    def __post_init__(self) -> None:
        _check("final", self.final, 0 <= self.final <= 1, "between 0 and 1")
        if self.length is not None:
            _check("length", self.length, self.length >= 1, "at least 1")

    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, self.final, self.length or rounds)


@SCHEDULES.register("polynomial")
@dataclass(frozen=True, kw_only=True)
class Polynomial(TorchSchedule):
    """Polynomial decay: a factor of (1 - round / rounds)^power (`PolynomialLR` of torch)."""

    power: float = 1.0

    def __post_init__(self) -> None:
        _check("power", self.power, 0 < self.power < math.inf, "a positive number")

    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        return torch.optim.lr_scheduler.PolynomialLR(optimizer, rounds, self.power)


@SCHEDULES.register("cosine_restarts")
@dataclass(frozen=True, kw_only=True)
class CosineRestarts(TorchSchedule):
    """Cosine annealing with warm restarts (SGDR): `CosineAnnealingWarmRestarts` of torch.

    "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov and Hutter, 2017).
    """

    length: int
    """Rounds of the first cycle."""
    times: int = 1
    """Factor of the length of each later cycle on the one before."""

    def __post_init__(self) -> None:
        _check("length", self.length, self.length >= 1, "at least 1")
        _check("times", self.times, self.times >= 1, "at least 1")

    def scheduler(self, optimizer: torch.optim.Optimizer, rounds: int) -> LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, self.length, self.times)
