"""Staleness weights: the factor of a vector by its age in rounds.

A vector that was made for the model of round v and is used in round t has the age t - v, and is multiplied
by `factor(age)`, as in "Federated Learning with Buffered Asynchronous Aggregation" (Nguyen et al., 2022).
Ages are the server's own count: no worker can make its vectors younger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from varangian.registry import Registry


@runtime_checkable
class Staleness(Protocol):
    """A function of the age that is 1 for a new vector and never grows."""

    def factor(self, age: int, /) -> float: ...


STALENESS: Registry[Staleness] = Registry("staleness weight")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` should be positive and finite. Found {value}.")


@STALENESS.register("constant")
@dataclass(frozen=True)
class Constant:
    """No staleness weight: an old vector counts as much as a new one."""

    def factor(self, age: int) -> float:
        return 1.0


@STALENESS.register("polynomial")
@dataclass(frozen=True)
class Polynomial:
    """Polynomial: (1 + age)^-a ("Asynchronous Federated Optimization", Xie et al., 2019)."""

    a: float = 0.5

    def __post_init__(self) -> None:
        _check_positive("a", self.a)

    def factor(self, age: int) -> float:
        return math.pow(1 + age, -self.a)


@STALENESS.register("hinge")
@dataclass(frozen=True)
class Hinge:
    """Hinge: 1 up to age b, then 1 / (a (age - b) + 1) (Xie et al., 2019)."""

    a: float = 10.0
    b: int = 4
    """Age in rounds up to which the weight is 1."""

    def __post_init__(self) -> None:
        _check_positive("a", self.a)
        if self.b < 0:
            raise ValueError(f"`b` should be a number of rounds, at least 0. Found {self.b}.")

    def factor(self, age: int) -> float:
        return 1 / (self.a * max(0, age - self.b) + 1)
