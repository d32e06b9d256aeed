"""Stale: vectors of old models, pushed as fresh ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, VectorAttack, remembers
from varangian.worker.attacks.memory import NO_MEMORY
from varangian.worker.attacks.nested import Around
from varangian.worker.attacks.replay import Replay


@ATTACKS.register("stale")
@dataclass(frozen=True)
class Stale(Around):
    """Stale: attackers push at once, so the server takes their vectors for fresh whatever they are made of.

    Aimed at weights by age, as those of `participation=async`: the server knows the age of the model that
    it sent, not of the one that a vector was computed for. An attacker who does not wait has the full
    weight in every buffer, where honest workers with a delay are weighed down. By default its vectors are
    its own of older models.

    Vector: that of the inner attack, pushed at once.
    Source: no paper.
    """

    attack: Annotated[VectorAttack, ATTACKS] = field(
        default_factory=cast("Callable[[], VectorAttack]", Replay)
    )
    """The attack that makes the vectors, a name or a name with its fields."""
    wait: float = 0.0
    """Seconds that an attacker waits before it pushes, in place of its delay."""

    def __post_init__(self) -> None:
        self.check_attack()
        if not 0 <= self.wait < math.inf:
            raise ValueError(f"`wait` should be a number of seconds, at least 0. Found {self.wait}.")

    @property
    def remembers(self) -> bool:
        return remembers(self.attack)

    def delay(self, honest: float, round: int, rng: torch.Generator) -> float:
        return self.wait

    def start(self) -> Any:
        return self.first_memory()

    def step(self, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Tensor | None, Any]:
        return self.vector(own, knows, memory)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor | None:
        return self.vector(own, knows, NO_MEMORY)[0]
