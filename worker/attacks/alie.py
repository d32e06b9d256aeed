"""A Little Is Enough (ALIE): a step within the spread of the honest vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight

USUAL = 1.5
"""The step of the authors' code and of ByzFL where none is chosen."""


@ATTACKS.register("alie")
@dataclass(frozen=True)
class Alie:
    """A Little Is Enough (ALIE): a step within the spread of the honest vectors, mean - z std.

    "A Little Is Enough: Circumventing Defenses For Distributed Learning" (Baruch et al., 2019). The mean
    and the standard deviation are those of the vectors that the attackers see: by default, as in the paper,
    their own; `knows: all` uses those of the honest workers instead. The deviation is that of a population
    (divided by k), as in the authors' code, and is never NaN.
    """

    needs: ClassVar[Sight] = "colluders"
    joint: ClassVar[bool] = True
    z: float | None = None
    """Standard deviations of the step; negative goes the other way. Null is the paper's z_max for n and f,
    or 1.5 where that is not positive: with one attacker, or two among an even number of workers."""

    def __post_init__(self) -> None:
        if self.z is not None and not math.isfinite(self.z):
            raise ValueError(f"`z` should be a finite number or null. Found {self.z}.")

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if seen < 2:
            return "it needs to see at least 2 vectors to know their spread, and it sees 1"
        if self.z is None and not math.isfinite(z_max(n, f)):
            return f"z_max has no value for n = {n} and f = {f}; give it a z"
        return None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        z = step(knows.n, knows.f) if self.z is None else self.z
        return knows.honest.mean(dim=0) - z * population_deviation(knows.honest)


def population_deviation(rows: Tensor) -> Tensor:
    """The standard deviation of each column of (k, d), with the bits of `std(dim=0, correction=0)`.

    By Welford's method in double precision, as torch computes it, but a row at a time: several times as
    fast.
    """
    mean = rows.new_zeros(rows.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for number, row in enumerate(rows, 1):
        apart = row - mean
        mean.add_(apart / number)
        squares.add_(apart.mul_(row - mean))
    return squares.div_(len(rows)).sqrt_().to(rows.dtype)


def step(n: int, f: int) -> float:
    """The z of an attack that was not given one; never 0, which would send the honest mean."""
    most = z_max(n, f)
    return most if most > 0 else USUAL


def z_max(n: int, f: int) -> float:
    """The largest step at which enough honest workers are expected to be further from the mean.

    s = floor(n / 2 + 1) - f honest workers are needed for a majority; z_max is the quantile
    (n - f - s) / (n - f) of the standard normal distribution. With one attacker, or two among an even
    number of workers, it is not positive: the formula sees no room. It is infinite where attackers are a
    majority.
    """
    honest = n - f
    needed = n // 2 + 1 - f
    if honest < 1 or needed < 0:
        return math.inf
    return float(torch.special.ndtri(torch.tensor((honest - needed) / honest, dtype=torch.float64)))
