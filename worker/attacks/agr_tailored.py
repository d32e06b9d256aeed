"""AGR-tailored attack: the largest deviation that a known rule lets through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.aggregators import Median, TrimmedMean
from varangian.worker.attacks import min_sum
from varangian.worker.attacks.against import Rule, attacked, largest_selected, made
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, HonestRows, measure, same_place

OCTAVES = 3
"""Powers of two around the strength of min-sum that are tried with a rule whose choice is not known."""
REFINEMENTS = 4
"""Halvings of the step around the best of them."""


@ATTACKS.register("agr_tailored")
@dataclass(frozen=True)
class AgrTailored:
    """AGR-tailored: mean + gamma p with the gamma that does most harm to a known rule.

    "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning"
    (Shejwalkar and Houmansadr, 2021), also called DYN-OPT. Against Krum, Multi-Krum and Bulyan gamma is the
    largest one with which the rule still selects the attackers: all of them, or one where it selects one.
    The paper halves a step; here an interval is bisected, whose end no such rule selects. Against median
    and trimmed mean the paper makes the distance of the result from the mean as large as it can. Their
    result moves with each coordinate and no further than the honest vectors go, so the best is known: in
    each coordinate the outermost honest value in the direction of p. Any other rule of the run is asked
    itself, along the line. Where not even the mean is selected, the mean is sent.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    against: Rule | None = None
    """The rule that is attacked; null is that of the run, whichever it is."""
    direction: Direction = "unit"
    """p: against the mean ("unit"), against the standard deviation ("std"), or against the signs of the
    mean ("sign")."""

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if self.against is not None and (reason := made(self.against, f).requires(n, f)):
            return f"{self.against}, which it is against, has a condition: {reason}"
        return same_place(seen)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        rule = attacked(self.against, knows)
        if isinstance(rule, Median | TrimmedMean):
            return outermost_values(knows.honest, self.direction)
        rows = measure(knows.honest, self.direction)
        if rule is None:
            return rows.at(strongest(knows, rows), own)
        return rows.at(largest_selected(rule, rows, knows.f), own)


def outermost_values(honest: Tensor, direction: Direction) -> Tensor:
    """In each coordinate the outermost honest value in the direction of p; the mean where p is 0."""
    if direction == "std":
        return honest.amin(dim=0)
    mean = honest.mean(dim=0, dtype=torch.float64)
    low, high = honest.amin(dim=0), honest.amax(dim=0)
    return torch.where(mean > 0, low, torch.where(mean < 0, high, torch.zeros_like(low)))


def strongest(knows: Knowledge, rows: HonestRows) -> float:
    """The gamma that moves the result of the run's rule furthest from the mean, of those that are tried."""
    usual = min_sum.strength(rows)
    if knows.rule is None or not usual:
        return 0.0
    probe = knows.rule.along(
        knows.honest, rows.mean.to(knows.honest), rows.direction.to(knows.honest), knows.f
    )
    known = {0.0: probe(usual).deviation}

    def deviation(power: float) -> float:
        if power not in known:
            known[power] = probe(usual * 2**power).deviation
        return known[power]

    step = 0.5
    best = max((step * k for k in range(-2 * OCTAVES, 2 * OCTAVES + 1)), key=deviation)
    for _ in range(REFINEMENTS):
        step /= 2
        best = max((best, best - step, best + step), key=deviation)
    return usual * 2**best
