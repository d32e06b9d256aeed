"""Equivocation: different vectors for one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, check_every, is_due


@ATTACKS.register("equivocate")
@dataclass(frozen=True)
class Equivocate:
    """Equivocation: several different vectors of one worker for one round.

    Version i, from 0, is (1 - 2 i / (versions - 1)) times the honest vector: the first is honest, the last
    is the honest one with its sign flipped. One of them counts, the first that is complete. A second one
    is no proof of a fault: an honest worker that was started again sends another one, too, since its
    momentum is gone.

    Vector: (1 - 2 i / (versions - 1)) g as version i.
    Source: no paper.
    """

    versions: int = 2
    """Different vectors in a round."""
    when: Literal["after", "together"] = "after"
    """`after`: each once the one before it was answered; `together`: all at the same time, each on a
    connection of its own."""
    every: int = 1
    """Attack in every so many rounds; push as an honest worker does in the others."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_every(self.every)
        if not 2 <= self.versions <= 8:
            raise ValueError(f"`versions` should be from 2 to 8. Found {self.versions}.")

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        versions = self.versions if is_due(round, self.every) else 1
        factors = [1.0 - 2.0 * i / (self.versions - 1) for i in range(versions)]
        pushes = [line.prepare(round, factor * vector) for factor in factors]
        if self.when == "together":
            await line.send_together(pushes)
            return
        for push in pushes:
            await line.send(push)
