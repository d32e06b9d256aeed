"""Delays of simulated workers: pure functions of the seed, the worker and the round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, runtime_checkable

from varangian.registry import Registry
from varangian.worker.simulation.availability import Place

ALL: tuple[int, ...] = ()


@runtime_checkable
class Delay(Protocol):
    """How long a worker waits before it sends."""

    def seconds(self, place: Place, round: int, /) -> float:
        """Not negative, finite."""
        ...


DELAYS: Registry[Delay] = Registry("delay")


@DELAYS.register("none")
@dataclass(frozen=True)
class NoDelay:
    """Everybody sends at once."""

    def seconds(self, place: Place, round: int) -> float:
        return 0.0


@DELAYS.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant:
    """Chosen workers are slower by a factor, in every round."""

    factor: float = 10.0
    """A step of theirs takes so many times as long."""
    step: float
    """Seconds that a step takes the others."""
    workers: tuple[int, ...] = (0,)
    """Numbers from 0; all when empty."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_seconds("step", self.step)
        check_workers(self.workers)

    def seconds(self, place: Place, round: int) -> float:
        return (self.factor - 1) * self.step if is_chosen(self.workers, place) else 0.0


@DELAYS.register("steps")
@dataclass(frozen=True, kw_only=True)
class Steps:
    """As if a step took everybody so long, and chosen workers a multiple: one machine stands for many."""

    step: float
    """Seconds, besides what computing really takes."""
    factor: float = 10.0
    """A step of the chosen takes so many times as long."""
    workers: tuple[int, ...] = (0,)
    """Numbers from 0; all when empty."""

    def __post_init__(self) -> None:
        check_seconds("step", self.step)
        check_factor(self.factor)
        check_workers(self.workers)

    def seconds(self, place: Place, round: int) -> float:
        return self.factor * self.step if is_chosen(self.workers, place) else self.step


@DELAYS.register("lognormal")
@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """Delays of any worker vary from round to round as those of shared machines do: most are alike."""

    median: float
    """Seconds."""
    sigma: float = 1.0
    """Standard deviation of the logarithm; with 1, five in a hundred are above 5 times the median."""
    most: float = 60.0
    """Seconds; longer ones are cut."""
    workers: tuple[int, ...] = ALL
    """Numbers from 0; all when empty."""

    def __post_init__(self) -> None:
        check_seconds("median", self.median)
        check_seconds("most", self.most)
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"`sigma` should not be negative. Found {self.sigma}.")
        check_workers(self.workers)

    def seconds(self, place: Place, round: int) -> float:
        if not is_chosen(self.workers, place):
            return 0.0
        exponent = self.sigma * NormalDist().inv_cdf(place.uniform("delay", round))
        # Beyond this an exponential is no float.
        return min(self.median * math.exp(min(exponent, 700.0)), self.most)


@DELAYS.register("pareto")
@dataclass(frozen=True, kw_only=True)
class Pareto:
    """A heavy tail: delays x times as long are x^alpha times as rare."""

    least: float
    """Seconds that every delay takes."""
    alpha: float = 1.5
    """With 1 and below the mean is infinite but for `most`."""
    most: float = 60.0
    """Seconds; longer ones are cut."""
    workers: tuple[int, ...] = ALL
    """Numbers from 0; all when empty."""

    def __post_init__(self) -> None:
        check_seconds("least", self.least)
        check_seconds("most", self.most)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"`alpha` should be a positive number. Found {self.alpha}.")
        check_workers(self.workers)

    def seconds(self, place: Place, round: int) -> float:
        if not is_chosen(self.workers, place):
            return 0.0
        exponent = -math.log(place.uniform("delay", round)) / self.alpha
        return min(self.least * math.exp(min(exponent, 700.0)), self.most)


def is_chosen(workers: tuple[int, ...], place: Place) -> bool:
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
