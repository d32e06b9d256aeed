"""Replay: attackers send old vectors of their own again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("replay")
@dataclass(frozen=True)
class Replay:
    """Replay: each attacker sends the honest vector that it had some rounds ago.

    It was honest for another model, so it is as long as honest vectors and points to where the model has
    already gone. Until there is one so old, the first is sent.

    Vector: g of `age` rounds ago.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "own"
    age: int = 10
    """Rounds of its own since the vector was honest. An attacker keeps as many vectors in memory."""

    def __post_init__(self) -> None:
        if self.age < 1:
            raise ValueError(f"`age` should be at least 1 round. Found {self.age}.")

    def start(self) -> tuple[Tensor, ...]:
        return ()

    def step(
        self, own: Tensor, knows: Knowledge, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = (*memory, own.clone())[-self.age - 1 :]
        return kept[0], kept
