"""Sleeper: honest until it is trusted, then an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, VectorAttack
from varangian.worker.attacks.nested import Around
from varangian.worker.attacks.sign_flip import SignFlip


class Phase(NamedTuple):
    """The memory of a sleeper: its phase, honest or attacking."""

    attacking: bool
    since: int
    """The round in which this phase began."""
    model: Tensor | None
    """The model of the round before, where it matters."""
    inner: Any
    """The memory of the attack."""


@ATTACKS.register("sleeper")
@dataclass(frozen=True)
class Sleeper(Around):
    """Sleeper: honest until the server's history is made of honest vectors, then another attack.

    Rules that measure from the last aggregate, and whatever counts a worker's past in its favour, trust it
    by then. The attack follows honest rounds too, as far as it remembers rounds.

    Vector: g for `after` rounds, then that of the inner attack.
    Source: no paper.
    """

    attack: Annotated[VectorAttack, ATTACKS] = field(
        default_factory=cast("Callable[[], VectorAttack]", SignFlip)
    )
    """The attack, a name or a name with its fields."""
    after: int = 10
    """Rounds at first in which it is honest."""
    period: int | None = None
    """Rounds after which it begins anew: honest for `after` of them. Null attacks to the end."""
    trust: float | None = None
    """Cosine of its honest vector and the last step of the server from which it is trusted: only then is it
    awake, in `after` rounds or later. Null counts rounds alone."""

    def __post_init__(self) -> None:
        self.check_attack()
        if self.after < 0:
            raise ValueError(f"`after` should be a number of rounds, at least 0. Found {self.after}.")
        if self.period is not None and self.period <= self.after:
            raise ValueError(
                f"`period` should be more than the {self.after} honest rounds of `after`, or null. "
                f"Found {self.period}."
            )
        if self.trust is not None and not -1 <= self.trust <= 1:
            raise ValueError(f"`trust` should be a cosine, from -1 to 1, or null. Found {self.trust}.")

    def start(self) -> Phase:
        return Phase(False, 0, None, self.first_memory())

    def step(self, own: Tensor, knows: Knowledge, memory: Phase) -> tuple[Tensor | None, Phase]:
        attacking, since = self._phase(own, knows, memory)
        model = None if self.trust is None else knows.model.clone()
        vector, inner = self.vector(own, knows, memory.inner)
        return vector if attacking else own.clone(), Phase(attacking, since, model, inner)

    def _phase(self, own: Tensor, knows: Knowledge, memory: Phase) -> tuple[bool, int]:
        """Whether it attacks in this round, and since when it has done what it does."""
        passed = knows.round - memory.since
        if memory.attacking:
            over = self.period is not None and passed >= self.period - self.after
            return (False, knows.round) if over and self.after > 0 else (True, memory.since)
        ready = passed >= self.after and self._trusted(own, knows, memory.model)
        return (True, knows.round) if ready else (False, memory.since)

    def _trusted(self, own: Tensor, knows: Knowledge, before: Tensor | None) -> bool:
        if self.trust is None:
            return True
        if before is None:
            return False
        # The server moves against the aggregate.
        return float(torch.cosine_similarity(own, (before - knows.model).to(own), dim=0)) >= self.trust
