"""The numbers of a round, by the names that they have in a tracker."""

from __future__ import annotations

import math
import re

from varangian.server.observability.record import RoundRecord

MANY = 64
"""Workers up to which each has a series of its own; the weights of more are in the table alone."""
OTHER = re.compile(r"[^A-Za-z0-9_./ -]")
"""Characters that some trackers do not take in the name of a number."""
FIELDS = (
    *("loss", "accuracy", "ema_loss", "ema_accuracy", "train_loss"),
    *("lr", "update_norm", "effective", "spread", "reference_weight", "deadline"),
)


def numbers_of(record: RoundRecord) -> dict[str, float]:
    """The numbers of a round that are there and finite.

    `loss` and the like are those of the record; `seconds/wait` are seconds by phase, `workers/missing`
    numbers of workers, and `weight/w00` is the weight of a worker in the update.
    """
    found: dict[str, float | None] = {name: getattr(record, name) for name in FIELDS}
    found |= record.metrics or {}
    found |= {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    found |= {
        "workers/missing": len(record.missing),
        "workers/declined": len(record.declined),
        "workers/dropped": len(record.dropped),
        "workers/gated": len(record.gated),
        "updated": record.skipped is None,
    }
    weights = record.weights or {}
    if weights:
        found["workers/counted"] = sum(weight != 0 for weight in weights.values())
    if len(weights) <= MANY:
        found |= {f"weight/{worker}": weight for worker, weight in weights.items()}
    return {
        OTHER.sub("_", name): float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }
