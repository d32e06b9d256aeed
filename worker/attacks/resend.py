"""Resend: recorded pushes, sent again byte for byte."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, Push


@ATTACKS.register("resend")
@dataclass(frozen=True)
class Resend:
    """Resend: an own push of some rounds ago, sent again byte for byte: a replay on the wire.

    With `age` 0 it is the push of this round, after it was counted: a repeat, which must count once. An
    older push is of a round that is over. With `relabel` its manifest names the round at hand, so that
    the old vector would count in place of, or beside, the new one.

    Vector: the bytes of an older push.
    Source: no paper.
    """

    age: int = 1
    """Rounds since the push was first sent; at most 100, since so many are kept."""
    instead: bool = False
    """Send nothing but the old push; otherwise an honest push comes first."""
    relabel: bool = False
    """Put the number of the round at hand into the old push."""
    times: int = 1
    """How often it is sent again in a round."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        if not 0 <= self.age <= 100:
            raise ValueError(f"`age` should be from 0 to 100 rounds. Found {self.age}.")
        if self.times < 1:
            raise ValueError(f"`times` should be at least 1. Found {self.times}.")
        if self.instead and not self.age:
            raise ValueError("`age` should be at least 1 with `instead`. Found 0.")

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        recorded: deque[Push] = line.memory.setdefault("recorded", deque(maxlen=self.age + 1))
        recorded.append(line.prepare(round, vector))
        old = recorded[0]
        begins = len(recorded) <= self.age  # nothing is old enough yet
        if begins or not self.instead:
            await line.send(recorded[-1])
        if begins:
            return
        for _ in range(self.times):
            await line.send(replace(old, round=round) if self.relabel else old)
