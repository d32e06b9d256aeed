"""Alarms of a run: rounds after which its state may be worth less than that before them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from varangian.server.observability.record import RoundRecord

FACTOR = 10.0
"""A loss or an update so many times as large as usual is an alarm."""
WINDOW = 50
"""Rounds whose updates say what is usual."""
LEAST = 10
"""Rounds that must be known for that."""
SHORTAGES = (
    "the quorum of ",
    "there is no vector to aggregate",
    "the rule promises nothing for these rows",
)
"""Reasons to skip a round that say nothing of the state: too few workers were there."""


@dataclass
class Alarms:
    """The alarms of a run, of which a spell is those less than 2 * `every` rounds apart."""

    every: int
    """Rounds from one checkpoint to the next."""
    first: int | None = None
    """The round of the first alarm of the last spell."""
    last: int | None = None
    """The round of the last alarm."""
    reason: str = ""
    """The reason of the first alarm of the last spell."""
    _least_loss: float = math.inf
    _dropped: set[str] = field(default_factory=set[str])
    _norms: deque[float] = field(default_factory=lambda: deque[float](maxlen=WINDOW))

    def look(self, record: RoundRecord) -> None:
        """Take note of a round."""
        reason = self._reason(record)
        self._dropped.update(record.dropped)
        if record.loss is not None and math.isfinite(record.loss):
            self._least_loss = min(self._least_loss, record.loss)
        if record.update_norm is not None and math.isfinite(record.update_norm):
            self._norms.append(record.update_norm)
        if reason:
            if self.last is None or record.round - self.last >= 2 * self.every:
                self.first, self.reason = record.round, reason
            self.last = record.round

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "first": self.first,
            "last": self.last,
            "reason": self.reason,
            "least_loss": self._least_loss if math.isfinite(self._least_loss) else None,
            "dropped": sorted(self._dropped),
            "norms": [*self._norms],
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what `plain` gave."""
        self.first, self.last, self.reason = plain["first"], plain["last"], plain["reason"]
        self._least_loss = math.inf if plain["least_loss"] is None else plain["least_loss"]
        self._dropped = set(plain["dropped"])
        self._norms = deque(plain["norms"], maxlen=WINDOW)

    def _reason(self, record: RoundRecord) -> str:
        if record.skipped is not None and not any(shortage in record.skipped for shortage in SHORTAGES):
            return f"round {record.round} had no update"
        scores = {"loss": record.loss, "accuracy": record.accuracy, **(record.metrics or {})}
        for name, value in scores.items():
            if value is not None and not math.isfinite(value):
                return f"{name} was not finite"
        if record.loss is not None and record.loss > FACTOR * self._least_loss:
            return f"the loss was {record.loss:g}, after {self._least_loss:g}"
        if record.update_norm is not None and len(self._norms) >= LEAST:
            usual = median(self._norms)
            if record.update_norm > FACTOR * usual:
                return f"the update was {record.update_norm:g} long, and {usual:g} was usual"
        new = sorted(record.dropped.keys() - self._dropped)
        return f"{new[0]} was dropped for the first time" if new else ""
