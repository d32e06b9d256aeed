"""Churn: a worker that leaves and joins again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, check_every, is_due


@ATTACKS.register("churn")
@dataclass(frozen=True)
class Churn:
    """Churn: an attacker that leaves and joins again every so many rounds, also in the middle of a push.

    To the server it looks like a worker that crashes: it spends none of the f, and rounds wait only for
    whom they are connected to.

    Vector: g, with leaving and joining in between.
    Source: no paper.
    """

    every: int = 1
    """Leave in every so many rounds; push as an honest worker does in the others."""
    when: Literal["before", "during", "after"] = "during"
    """Leave in place of the push, with half of it sent, or once it was answered."""
    away: float = 0.0
    """Seconds until it joins again."""
    anew: bool = False
    """Join as another process, as after a crash: the name is free two seconds after the first one left."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_every(self.every)
        if not 0 <= self.away < float("inf"):
            raise ValueError(f"`away` should be a number of seconds, at least 0. Found {self.away}.")

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        leaves, push = is_due(round, self.every), line.prepare(round, vector)
        if not leaves or self.when == "after":
            await line.send(push)
        elif self.when == "during":
            await line.send(push, share=0.5)
        if leaves:
            await line.leave()
            await line.pause(self.away)
            await line.join(anew=self.anew)
