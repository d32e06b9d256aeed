"""AGR-tailored attack: the largest deviation that a known rule lets through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.aggregators import Median, TrimmedMean
from varangian.worker.attacks.against import Rule, attacked, largest_selected, made
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, measure, same_place
from varangian.worker.attacks.line_search import strongest


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

    Vector: mean + gamma p, gamma by a search; against median and trimmed mean the outermost honest
    values along p.
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
            # On rows of the type of the vectors, as `LiveRule` takes them.
            mean, direction = rows.mean.to(knows.honest), rows.direction.to(knows.honest)
            return rows.at(strongest(knows, mean, direction, "deviation") or 0.0, own)
        return rows.at(largest_selected(rule, rows, knows.f), own)


def outermost_values(honest: Tensor, direction: Direction) -> Tensor:
    """In each coordinate the outermost honest value in the direction of p; the mean where p is 0."""
    if direction == "std":
        return honest.amin(dim=0)
    mean = honest.mean(dim=0, dtype=torch.float64)
    low, high = honest.amin(dim=0), honest.amax(dim=0)
    return torch.where(mean > 0, low, torch.where(mean < 0, high, torch.zeros_like(low)))
