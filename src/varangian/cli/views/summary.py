"""What a run has shown so far: who was believed, who was dropped, and how fast it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varangian.server.observability.record import RoundRecord, Scores


@dataclass
class RunSummary:
    """Sums over the rounds of a run."""

    rounds: int = 0
    skipped: int = 0
    scores: Scores | None = None
    """Of the last evaluation."""
    shares: dict[str, float] = field(default_factory=dict)
    """Sum over rounds of each worker's share of the absolute weights."""
    weighed: int = 0
    """Rounds in which the rule gave weights."""
    drops: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a worker was dropped, the last time."""
    missing: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    """How many vectors were how many rounds old, where that is known."""
    first: float = 0.0
    """When the first round was added, by a clock that never goes back."""
    last: float = 0.0

    def add(self, record: RoundRecord) -> None:
        self.rounds += 1
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.skipped += record.skipped is not None
        if record.loss is not None:
            self.scores = record.scores
        total = sum(map(abs, record.weights.values())) if record.weights else 0.0
        if record.weights and total > 0:
            self.weighed += 1
            for worker, weight in record.weights.items():
                self.shares[worker] = self.shares.get(worker, 0.0) + abs(weight) / total
        self.drops.update(record.dropped.keys())
        self.reasons.update(record.dropped)
        self.missing.update(record.missing)
        self.ages.update((record.ages or {}).values())

    @property
    def rate(self) -> float:
        """Rounds per second, between the first round and the last."""
        return (self.rounds - 1) / (self.last - self.first) if self.last > self.first else 0.0

    def share(self, workers: Collection[str]) -> float | None:
        """The part of the weight that these workers had on average; None when the rule gives no weights."""
        if not self.weighed:
            return None
        return sum(self.shares.get(worker, 0.0) for worker in workers) / self.weighed

    def least_believed(self, count: int) -> list[tuple[str, float]]:
        """The workers with the least weight, and their share."""
        ranked = sorted(self.shares.items(), key=lambda entry: entry[1])[:count]
        return [(worker, share / self.weighed) for worker, share in ranked]
