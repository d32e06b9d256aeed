"""Slow drip: a push at a few bytes per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack, check_positive
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, check_every, is_due


@ATTACKS.register("slow_drip")
@dataclass(frozen=True)
class SlowDrip:
    """Slow drip: an honest vector at a few bytes per second, so that rounds wait for it.

    The attack of Slowloris on a parameter server. No stream is ever silent for as long as the server
    allows; what ends the wait is adaptive waiting or the deadline of the round. With `every` 2 or more
    the attacker is in time in between, so that the server waits for it again.

    Vector: g at `rate` bytes per second.
    Source: after Slowloris, which does so to web servers.
    """

    rate: float = 100.0
    """Bytes per second, sent once a second or, where that is less than one byte, a byte at a time."""
    every: int = 1
    """Drip in every so many rounds; push as an honest worker does in the others."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_positive(rate=self.rate)
        check_every(self.every)

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        await line.send(line.prepare(round, vector), rate=self.rate if is_due(round, self.every) else None)
