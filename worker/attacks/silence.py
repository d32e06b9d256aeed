"""Silence: attackers send nothing in chosen rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("silence")
@dataclass(frozen=True)
class Silence:
    """Silence in chosen rounds: attackers send nothing, and in all others what is honest.

    The server cannot tell it from a crash, so it spends none of the f. It makes rounds wait for their
    deadline, and leaves fewer honest vectors beside the other attackers'.

    Vector: nothing in chosen rounds, else g.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "own"
    every: int | None = None
    """Rounds 0, k, 2k and so on; 1 is every round."""
    probability: float | None = None
    """Each attacker draws for itself, in each round, whether it is silent."""
    rounds: tuple[int, ...] | None = None
    """These rounds, counted from 0. Null for all three is every round."""

    def __post_init__(self) -> None:
        given = [name for name in ("every", "probability", "rounds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"only one of `every`, `probability` and `rounds` should be given. Found {given}."
            )
        if self.every is not None and self.every < 1:
            raise ValueError(f"`every` should be at least 1 round or null. Found {self.every}.")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"`probability` should be from 0 to 1 or null. Found {self.probability}.")
        if self.rounds is not None and not all(round >= 0 for round in self.rounds):
            raise ValueError(f"`rounds` should be rounds from 0, or null. Found {[*self.rounds]}.")

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor | None:
        return None if self.silent(knows) else own.clone()

    def silent(self, knows: Knowledge) -> bool:
        """Whether an attacker is silent in a round."""
        if self.rounds is not None:
            return knows.round in self.rounds
        if self.probability is not None:
            return float(torch.rand((), generator=knows.rng, dtype=torch.float64)) < self.probability
        return knows.round % (self.every or 1) == 0
