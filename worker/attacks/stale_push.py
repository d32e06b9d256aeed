"""Stale push: a vector under the number of an older round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, check_every, is_due


@ATTACKS.register("stale_push")
@dataclass(frozen=True)
class StalePush:
    """Stale push: a new vector under the number of a round that is over, or that has not opened.

    Where rounds are synchronous it is refused, and the worker is missing. Where older vectors count, as
    with `async`, the server knows which model it has given to whom, and refuses every other number.

    Vector: g under the number of another round.
    Source: no paper.
    """

    age: int = 1
    """Rounds by which the number is too low; negative for a round that is still to come."""
    every: int = 1
    """Attack in every so many rounds; push as an honest worker does in the others."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_every(self.every)
        if self.age == 0:
            raise ValueError("`age` should not be 0, which is the round at hand.")

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        false = max(0, round - self.age) if is_due(round, self.every) else round
        await line.send(line.prepare(false, vector))
