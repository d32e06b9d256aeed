"""One case of the demo: a rule against an attack, and its accuracy over the rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varangian.launch import RunResult
    from varangian.server.observability.record import RoundRecord


@dataclass
class Case:
    """One rule against one attack."""

    rule: str
    attack: str
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Rounds done, and the accuracy then."""
    result: RunResult | None = None

    @property
    def accuracy(self) -> float | None:
        return self.curve[-1][1] if self.curve else None

    def add(self, record: RoundRecord) -> None:
        if record.accuracy is not None:
            self.curve.append((record.round + 1, record.accuracy))

    def close(self, result: RunResult) -> None:
        self.result = result
        if result.accuracy is not None and (not self.curve or self.curve[-1][0] < result.rounds):
            self.curve.append((result.rounds, result.accuracy))
