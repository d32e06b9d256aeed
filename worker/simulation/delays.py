"""Delays of simulated workers: pure functions of the seed, the worker and the round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, runtime_checkable

from varangian.registry import Registry
from varangian.worker.simulation.availability import WorkerIndex

ALL: tuple[int, ...] = ()


@runtime_checkable
class Delay(Protocol):
    """The time that a worker waits before it pushes."""

    def seconds(self, place: WorkerIndex, round: int, /) -> float:
        """The delay, finite and not negative."""
        ...


DELAYS: Registry[Delay] = Registry("delay")


@DELAYS.register("none")
@dataclass(frozen=True)
class NoDelay:
    """No delay: a worker pushes as soon as it has computed."""

    def seconds(self, place: WorkerIndex, round: int) -> float:
        return 0.0


@DELAYS.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant:
    """Constant stragglers: the same workers are slower by a factor in every round."""

    factor: float = 10.0
    """A straggler's step takes this many times as long."""
    step: float
    """Seconds that a step takes the other workers."""
    workers: tuple[int, ...] = (0,)
    """The stragglers, by number from 0; empty is all workers."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_seconds("step", self.step)
        check_workers(self.workers)

    def seconds(self, place: WorkerIndex, round: int) -> float:
        return (self.factor - 1) * self.step if is_chosen(self.workers, place) else 0.0


@DELAYS.register("steps")
@dataclass(frozen=True, kw_only=True)
class Steps:
    """Simulated compute time: a step takes every worker so long, and stragglers a multiple of it."""

    step: float
    """Seconds of a step, added to the real computing time."""
    factor: float = 10.0
    """A straggler's step takes this many times as long."""
    workers: tuple[int, ...] = (0,)
    """The stragglers, by number from 0; empty is all workers."""

    def __post_init__(self) -> None:
        check_seconds("step", self.step)
        check_factor(self.factor)
        check_workers(self.workers)

    def seconds(self, place: WorkerIndex, round: int) -> float:
        return self.factor * self.step if is_chosen(self.workers, place) else self.step


@DELAYS.register("lognormal")
@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """Log-normal delays, drawn for each worker and round: most are alike, as on shared machines."""

    median: float
    """Median delay in seconds."""
    sigma: float = 1.0
    """Standard deviation of the logarithm; with 1, five in a hundred are above 5 times the median."""
    most: float = 60.0
    """Longest delay in seconds; longer draws are cut to it."""
    workers: tuple[int, ...] = ALL
    """The delayed workers, by number from 0; empty is all workers."""

    def __post_init__(self) -> None:
        check_seconds("median", self.median)
        check_seconds("most", self.most)
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"`sigma` should not be negative. Found {self.sigma}.")
        check_workers(self.workers)

    def seconds(self, place: WorkerIndex, round: int) -> float:
        if not is_chosen(self.workers, place):
            return 0.0
        exponent = self.sigma * NormalDist().inv_cdf(place.uniform("delay", round))
        # Beyond this an exponential is no float.
        return min(self.median * math.exp(min(exponent, 700.0)), self.most)


@DELAYS.register("pareto")
@dataclass(frozen=True, kw_only=True)
class Pareto:
    """Pareto (heavy-tailed) delays: delays x times as long are x^alpha times as rare."""

    least: float
    """Shortest delay in seconds."""
    alpha: float = 1.5
    """Tail index; at 1 and below the mean would be infinite without `most`."""
    most: float = 60.0
    """Longest delay in seconds; longer draws are cut to it."""
    workers: tuple[int, ...] = ALL
    """The delayed workers, by number from 0; empty is all workers."""

    def __post_init__(self) -> None:
        check_seconds("least", self.least)
        check_seconds("most", self.most)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"`alpha` should be a positive number. Found {self.alpha}.")
        check_workers(self.workers)

    def seconds(self, place: WorkerIndex, round: int) -> float:
        if not is_chosen(self.workers, place):
            return 0.0
        exponent = -math.log(place.uniform("delay", round)) / self.alpha
        return min(self.least * math.exp(min(exponent, 700.0)), self.most)


def is_chosen(workers: tuple[int, ...], place: WorkerIndex) -> bool:
    return not workers or place.worker in workers


def check_seconds(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` should be a positive number of seconds. Found {value}.")


def check_factor(factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"`factor` should be at least 1. Found {factor}.")


def check_workers(workers: tuple[int, ...]) -> None:
    if any(worker < 0 for worker in workers):
        raise ValueError(f"`workers` should be numbers from 0. Found {min(workers)}.")
