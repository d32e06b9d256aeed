"""Records of steps of the robust reduction: what is in one, its line in a file, and suspect ranks.

n  ranks
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of the reduction; the same on every rank."""

    step: int
    """Counted from 0; steps under `no_sync` do not count."""
    dropped: tuple[int, ...]
    """Ranks whose gradient was not finite: they took no part."""
    weights: tuple[float, ...] | None
    """The coefficient of each rank's gradient in the update; None for a coordinate-wise rule."""
    reference_weight: float = 0.0
    """The coefficient of the last update in this one."""
    spread: float | None = None
    """Mean squared distance of the gradients that took part from the update; None where the rule measures
    no distances, or goes by coordinates."""
    distances: tuple[float, ...] | None = None
    """Of each rank's gradient from the update, NaN for one that was dropped; None as for `spread`."""
    error: str | None = None
    """Why there is no update; None where there is one."""

    @property
    def effective(self) -> float | None:
        """The effective number of gradients: (sum c)^2 / sum c^2 of the weights c."""
        if self.weights is None:
            return None
        squares = math.fsum(c * c for c in self.weights)
        return math.fsum(self.weights) ** 2 / squares if squares else 0.0

    @property
    def left_out(self) -> frozenset[int]:
        """Ranks that had no influence on the update: dropped, or of weight 0."""
        none = () if self.weights is None else (i for i, c in enumerate(self.weights) if c == 0)
        return frozenset({*self.dropped, *none})

    def line(self) -> str:
        """The record as a line of JSON; what is not known is left out."""
        distances = None if self.distances is None else [_number(x) for x in self.distances]
        values: dict[str, Any] = {
            "step": self.step,
            "dropped": [*self.dropped],
            "weights": None if self.weights is None else [*self.weights],
            "effective": self.effective,
            "reference_weight": self.reference_weight or None,
            "spread": self.spread,
            "distances": distances,
            "error": self.error,
        }
        return json.dumps({key: value for key, value in values.items() if value is not None})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SuspectRank:
    """A rank whose gradient had no influence for a number of steps in a row."""

    rank: int
    steps: int
    host: str
    device: str

    def __str__(self) -> str:
        return (
            f"Rank {self.rank} (host {self.host}, {self.device}) had no influence on the update for "
            f"{self.steps} steps in a row: its gradients are not finite or far from the others. Look at "
            "its data and its device."
        )


class Suspicion:
    """Counts for how many steps in a row each rank was left out."""

    def __init__(self, n: int, after: int) -> None:
        self._counts = [0] * n
        self._after = after

    def see(self, step: Step) -> list[int]:
        """The ranks that have just been left out for so many steps in a row."""
        if step.error is not None:
            return []
        self._counts = [
            count + 1 if rank in step.left_out else 0 for rank, count in enumerate(self._counts)
        ]
        return [rank for rank, count in enumerate(self._counts) if count == self._after]

    def counts(self) -> list[int]:
        """Steps in a row for which each rank was left out."""
        return [*self._counts]

    def restore(self, counts: Sequence[int]) -> None:
        """Go on from `counts`; of another number of ranks they begin again."""
        if len(counts) == len(self._counts):
            self._counts = [*counts]


def appender(path: str | Path) -> Callable[[Step], None]:
    """A function that appends the line of a step to a file, which is whole after each.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the reduction

    def append(step: Step) -> None:
        file.write(step.line() + "\n")

    return append
