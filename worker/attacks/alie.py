"""A Little Is Enough (ALIE): a step within the spread of the honest vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.line_search import Objective, strongest

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

    With `z: optimal` attackers know the rule as well, and send the z that does most harm to it in each
    round, as ByzFL's Optimal_ALittleIsEnough; it needs `all`. z is positive in all rounds: steps to both
    sides would cancel over rounds.

    Vector: mean - z std, z = Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2 + 1) - f.
    """

    joint: ClassVar[bool] = True
    z: float | Literal["optimal"] | None = None
    """Standard deviations of the step; negative goes the other way. Null is the paper's z_max for n and f,
    or 1.5 where that is not positive: with one attacker, or two among an even number of workers."""
    objective: Objective = "deviation"
    """The quantity that the optimal z makes largest: `deviation` is |F - mean|^2 of the update F, which
    guarantees of rules bound and ByzFL takes; `inner` is -<F, mean>, how far F points against the mean."""

    def __post_init__(self) -> None:
        if isinstance(self.z, float | int) and not math.isfinite(self.z):
            raise ValueError(f"`z` should be a finite number, 'optimal' or null. Found {self.z}.")

    @property
    def needs(self) -> Sight:
        return "all" if self.z == "optimal" else "colluders"

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if seen < 2:
            return "it needs to see at least 2 vectors to know their spread, and it sees 1"
        if self.z is None and not math.isfinite(z_max(n, f)):
            return f"z_max has no value for n = {n} and f = {f}; give it a z"
        return None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        mean, deviation = knows.honest.mean(dim=0), population_deviation(knows.honest)
        z = self.z
        if z == "optimal":
            z = strongest(knows, mean, -deviation, self.objective)
        return mean - (step(knows.n, knows.f) if z is None else z) * deviation


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
    return float(
        torch.special.ndtri(torch.tensor((honest - needed) / honest, dtype=torch.float64, device="cpu"))
    )
