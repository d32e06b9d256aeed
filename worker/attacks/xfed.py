"""XFED: an attack without collusion, from the models that the server sends."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight, check_positive


class Seen(NamedTuple):
    """The models and honest vectors that an attacker has seen, as far as it remembers them."""

    model: Tensor | None
    """The last one."""
    steps: tuple[float, ...]
    """Distances of one model to the next."""
    lengths: tuple[float, ...]
    """Lengths of its own honest vectors."""


@ATTACKS.register("xfed")
@dataclass(frozen=True)
class Xfed:
    """XFED: each attacker turns its vector round by as much as the model usually moves in a round.

    Non-collusive, of 2026 (arXiv 2604.09489): it knows its own data and the models that the server sends,
    not other workers nor the rule. With s = median + c MAD of the recent distances from one model to the
    next it sends its honest vector plus s p, for a unit vector p against its own vector, or against the
    last step of the model. Distances of models are measured in vectors by the attacker's own: their median
    counts as the median length of its honest vectors. The paper's c is not known to us.

    Vector: g + s p, s = median + c MAD of the recent steps of the model.
    Source: "XFED: Non-Collusive Model Poisoning Attack Against Byzantine-Robust Federated Classifiers"
    (Mouri et al., 2026).
    """

    needs: ClassVar[Sight] = "own"
    c: float = 3.0
    """Median absolute deviations above the median distance."""
    against: Literal["own", "step"] = "step"
    """The direction that is reversed: that of its own honest vector, or of the last step of the model."""
    recent: int = 10
    """Rounds of which distances are remembered."""

    def __post_init__(self) -> None:
        check_positive(c=self.c)
        if self.recent < 1:
            raise ValueError(f"`recent` should be at least 1 round. Found {self.recent}.")

    def start(self) -> Seen:
        return Seen(None, (), ())

    def step(self, own: Tensor, knows: Knowledge, memory: Seen) -> tuple[Tensor, Seen]:
        length = _length(own)
        lengths = (*memory.lengths, length)[-self.recent :]
        if memory.model is None:
            return own.clone(), Seen(knows.model.clone(), (), lengths)
        step = knows.model - memory.model
        steps = (*memory.steps, moved := _length(step))[-self.recent :]
        seen = Seen(knows.model.clone(), steps, lengths)
        usual = median(steps)
        if usual == 0 or moved == 0 or length == 0:
            return own.clone(), seen
        spread = median(abs(distance - usual) for distance in steps)
        size = median(lengths) * (1 + self.c * spread / usual)
        # The server moves the model against vectors, so its last step is against their direction already.
        against = -own / length if self.against == "own" else (step / moved).to(own)
        return torch.add(own, against, alpha=size), seen


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
