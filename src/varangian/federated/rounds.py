"""The record of a round of clients of another framework, and its line in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.frameworks import line_appender

SHOWN = 3
"""Clients whose reasons stand in a sentence."""


@dataclass(frozen=True)
class Round:
    """What became of the replies of a round."""

    round: int
    clients: tuple[str, ...]
    """Those whose model took part."""
    dropped: Mapping[str, str]
    """Clients whose reply cannot be used, and why; each counts as one of the f."""
    absent: Mapping[str, str]
    """Clients that were asked and sent no model, and why. They do not count as one of the f: whoever is
    Byzantine may be among the others."""
    weights: Mapping[str, float] | None
    """The coefficient of each client in the update; None for a coordinate-wise rule."""
    spread: float | None = None
    """Mean squared distance of the models from the update; None where the rule measures no distances."""
    error: str | None = None
    """Why there is no update; None where there is one."""

    @property
    def effective(self) -> float | None:
        """The effective number of clients: (sum c)^2 / sum c^2 of the weights c."""
        if not self.weights:
            return None
        squares = math.fsum(c * c for c in self.weights.values())
        return math.fsum(self.weights.values()) ** 2 / squares if squares else 0.0

    def line(self) -> str:
        """The record as a line of JSON; what is not known is left out."""
        values: dict[str, Any] = {
            "round": self.round,
            "clients": [*self.clients],
            "dropped": dict(self.dropped),
            "absent": dict(self.absent),
            "weights": None if self.weights is None else dict(self.weights),
            "effective": self.effective,
            "spread": self.spread if self.spread is not None and math.isfinite(self.spread) else None,
            "error": self.error,
        }
        return json.dumps({key: value for key, value in values.items() if value is not None})

    def __str__(self) -> str:
        """One sentence or two for a log."""
        text = f"Round {self.round}: {len(self.clients)} models took part"
        if self.dropped:
            text += f", {len(self.dropped)} were dropped ({_reasons(self.dropped)})"
        if self.absent:
            text += f", {len(self.absent)} clients sent none ({_reasons(self.absent)})"
        return f"{text}." if self.error is None else f"{text}. There is no update: {self.error}"


def _reasons(found: Mapping[str, str]) -> str:
    shown = [f"{client}: {reason}" for client, reason in [*found.items()][:SHOWN]]
    return "; ".join([*shown, *(["..."] if len(found) > SHOWN else [])])


def appender(path: str | Path) -> Callable[[Round], None]:
    """A function that appends the line of a round to a file, which is whole after each.

    Where a later line cannot be written there is a warning, and the run goes on.

    Raises:
        OSError: the file cannot be written.
    """
    append = line_appender(path)
    return lambda record: append(record.line(), f"round {record.round}")
