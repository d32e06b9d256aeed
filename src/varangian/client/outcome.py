"""Outcome of a push."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What came of a push. It is true where the vector was accepted."""

    accepted: bool
    """Whether the vector counts in its round. What the rule makes of it is known when the round is over."""
    round: int
    """The round that the vector is for."""
    weight: float | None = None
    """The coefficient of this worker's row in the last aggregate that had one; 0 where its row was dropped,
    with any rule, or left out by a gate. None where the server does not say: of a push that is not
    accepted, before the first aggregate, and for rows that took part in a rule without coefficients, as the
    coordinate-wise median and `nnm+trimmed_mean`: they give every worker some of the coordinates."""
    weight_round: int | None = None
    """The round of that aggregate; None where `weight` is."""
    code: str = ""
    """The stable code of a refusal, as in the reference of refusals; DECLINED where nothing was sent."""
    reason: str = ""
    """Why it does not count, in one sentence; also that the computation took longer than a round has."""

    def __bool__(self) -> bool:
        return self.accepted


DECLINED = "DECLINED"
"""The code of an outcome where nothing was sent, and the server was told why."""
