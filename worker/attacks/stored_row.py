"""Stored row: one bad vector and then silence, against a server that keeps the latest vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, cast

from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, VectorAttack
from varangian.worker.attacks.nested import Around
from varangian.worker.attacks.sign_flip import SignFlip


class Pushed(NamedTuple):
    """The memory of an attacker: the bad vector it has pushed last."""

    round: int | None
    """The last one with a bad vector."""
    inner: Any
    """The memory of the attack."""


@ATTACKS.register("stored_row")
@dataclass(frozen=True)
class StoredRow(Around):
    """Stored row: one bad vector, then silence, so that it stays among the latest vectors of FedLaAvg.

    The server uses a stored row in every round until there is a newer one or it expires. A row of an early
    model is long and out of date, and stays so; and the silent attacker is selected again and again, as the
    one whose turn was the longest ago, in the place of an honest worker.

    Vector: one of the inner attack, then nothing.
    Source: no paper.
    """

    attack: Annotated[VectorAttack, ATTACKS] = field(
        default_factory=cast("Callable[[], VectorAttack]", SignFlip)
    )
    """The attack that makes the vector, a name or a name with its fields."""
    after: int = 0
    """Rounds at first in which it is honest."""
    again: int | None = None
    """Rounds after which it pushes anew, as the `expire` of the server; null is never."""

    def __post_init__(self) -> None:
        self.check_attack()
        if self.after < 0:
            raise ValueError(f"`after` should be a number of rounds, at least 0. Found {self.after}.")
        if self.again is not None and self.again < 1:
            raise ValueError(f"`again` should be at least 1 round, or null. Found {self.again}.")

    def start(self) -> Pushed:
        return Pushed(None, self.first_memory())

    def step(self, own: Tensor, knows: Knowledge, memory: Pushed) -> tuple[Tensor | None, Pushed]:
        vector, inner = self.vector(own, knows, memory.inner)
        if knows.round < self.after:
            return own.clone(), Pushed(None, inner)
        if memory.round is None or (self.again and knows.round - memory.round >= self.again):
            return vector, Pushed(knows.round, inner)
        return None, Pushed(memory.round, inner)
