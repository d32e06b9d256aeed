"""STAT-OPT: a step against the signs of the honest mean, as large as the statistics allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators import Krum
from varangian.worker.attacks.against import selects
from varangian.worker.attacks.alie import population_deviation
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import HonestRows, measure, same_place, sendable

BEYOND = 16
"""Times the paper's bound, where lambda begins if rows have weights."""
SMALLEST = 1e-5
"""The part of its first value below which lambda is not halved further."""


@ATTACKS.register("stat_opt")
@dataclass(frozen=True)
class StatOpt:
    """STAT-OPT: a step against the signs of the honest mean, as large as the statistics allow.

    "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning" (Fang et al., 2020). Against
    coordinate-wise rules each attacker draws each coordinate from mean - 4 std to mean - 3 std where the
    mean is positive, and from mean + 3 std to mean + 4 std elsewhere: the paper's attack with partial
    knowledge. (With full knowledge it is `agr_tailored` against the median.) Against Krum all send
    -lambda sign(mean): lambda starts at the paper's bound and is halved until Krum selects the vector,
    or it is 1e-5 of what it was; the paper's smallest lambda is 1e-5 itself. Krum is that of the run, if
    it has one, or as in its paper.

    Vector: per coordinate from [mean - 4 std, mean - 3 std], or on the other side of a negative mean;
    Krum: -lambda sign(mean).
    """

    needs: ClassVar[Sight] = "colluders"
    usual: ClassVar[Sight] = "all"
    against: Literal["krum", "coordinatewise"] = "coordinatewise"

    @property
    def joint(self) -> bool:
        """Whether all attackers send the same vector."""
        return self.against == "krum"

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if self.against == "coordinatewise":
            return same_place(seen)
        if reason := Krum(f=f).requires(n, f):
            return f"Krum, which it is against, has a condition: {reason}"
        if seen < n - f:
            return f"against Krum it needs to see all {n - f} honest vectors, and it sees {seen}"
        return None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        if self.against == "krum":
            known = None if knows.rule is None else knows.rule.aggregator
            plain = known is not None and not known.mix and not known.splits
            f = knows.f if knows.rule is None else knows.rule.f
            rule = known.rule if known is not None and plain and isinstance(known.rule, Krum) else Krum(f=f)
            return towards_krum(rule, own, knows)
        mean = knows.honest.mean(dim=0, dtype=torch.float64)
        deviation = population_deviation(knows.honest)
        steps = torch.rand(own.shape, generator=knows.rng, dtype=torch.float32).add_(3).to(mean)
        return sendable(mean - torch.where(mean > 0, deviation, -deviation) * steps, own)


def towards_krum(rule: Krum, own: Tensor, knows: Knowledge) -> Tensor:
    """The vector -lambda sign(mean) with the first lambda that Krum selects.

    With weights the bound of the paper is none: lambda begins above it.
    """
    rows, shares = measure(knows.honest, "sign"), knows.shares
    first = strength = bound(rows, knows.f) * (1 if shares is None else BEYOND)
    while strength > SMALLEST * first:
        if selects(rule, rows.gram(strength, knows.f, base=0.0).weighted(shares), knows.f):
            break
        strength /= 2
    return rows.at(strength, own, base=0.0)


def bound(rows: HonestRows, f: int) -> float:
    """Above this lambda Krum never selects -lambda sign(mean): theorem 1 of the paper.

    sqrt(s / ((n - 2 f - 1) d)) + max |g_i| / sqrt(d), with s the least score of an honest vector among the
    honest, and d the number of coordinates in which the mean is not 0.
    """
    if rows.length == 0:
        return 0.0
    honest = len(rows.along)
    nearest = np.sort(rows.sqdist, axis=1)[:, : max(1, honest - 1)]  # the first is the distance 0 to itself
    score = nearest.sum(axis=1).min()
    longest = math.sqrt(max(0.0, float((rows.squares + 2 * rows.products).max()) + rows.mean_length))
    return (math.sqrt(score / max(1, honest - f - 1)) + longest) / math.sqrt(rows.length)
