"""The result of a run, and what goes to the user on the way: notes and errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Note = Callable[[str], None]
"""Takes a sentence that a user should know besides the rounds; called from any thread."""


class RunError(Exception):
    """A run that cannot go on; the sentence says why and what to do."""


Outcome = Literal["finished", "failed", "interrupted"]
"""finished: all rounds are done; failed: they cannot be; interrupted: by a signal."""


@dataclass(frozen=True)
class RunResult:
    """The end of a run, however it came."""

    accuracy: float | None
    """Of the final parameters on held-out data, from 0 to 1; None where samples have no classes."""
    loss: float | None
    digest: str
    """blake2b-128 of the final parameters, in hexadecimal."""
    rounds: int
    """The number of rounds that were closed, with an update or without."""
    seconds: float
    """From the moment that the server was ready."""
    reason: str
    """The reason why the run ended, as a sentence."""
    outcome: Outcome
    folder: Path | None = None
    ema_accuracy: float | None = None
    """Of the average of the model; None in a run without one."""
    ema_loss: float | None = None
    metrics: dict[str, float] | None = None
    """Other metrics of the final parameters, by name."""
    signal: int | None = None
    """The number of the signal that stopped the run, if one did."""
    train_loss: float | None = None
    """On a fixed sample of the training data that the server has."""

    def plain(self) -> dict[str, Any]:
        """The values as JSON takes them."""
        folder = None if self.folder is None else str(self.folder)
        losses = {name: _finite(getattr(self, name)) for name in ("loss", "ema_loss", "train_loss")}
        own = self.metrics
        metrics = None if own is None else {name: _finite(value) for name, value in own.items()}
        return dataclasses.asdict(self) | {"folder": folder, "metrics": metrics} | losses


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
