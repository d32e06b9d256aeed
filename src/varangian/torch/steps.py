"""Records of steps of the robust reduction: what is in one, its line in a file, and suspect ranks.

n  ranks
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.frameworks import line_appender

FAR = 3.0
"""So many times the median distance from the update is far. Distances of gradients of batches of one size,
from one model, differ by less: what varies is their length, by tens of percent."""
FAULTS = 3
"""Steps with a fault that can be seen after which a rank is a suspect."""
WINDOW = 50
"""The steps within which these are."""


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
    """Mean squared distance of the gradients that took part from the update; None where there is none."""
    distances: tuple[float, ...] | None = None
    """Of each rank's gradient from the update, NaN for one that was dropped; None as for `spread`."""
    repeated: tuple[int, ...] = ()
    """Ranks whose gradient is that of their step before, number for number, while most ranks' are new."""
    error: str | None = None
    """Why there is no update; None where there is one."""
    agreement: tuple[float, ...] | None = None
    """Mean cosine of each rank's gradient with those of the others; NaN for one without a direction."""
    opposed: tuple[int, ...] = ()
    """Ranks whose gradients point against the others, which agree, for so long that it is certain."""
    accused: tuple[int, ...] = ()
    """Ranks of which an audit found that they compute wrongly for others; then there is no update."""

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

    @property
    def far(self) -> frozenset[int]:
        """Ranks whose gradient is `FAR` times as far from the update as the median rank's."""
        known = [x for x in self.distances or () if math.isfinite(x)]
        if not known:
            return frozenset()
        limit = FAR * statistics.median(known)
        return frozenset(i for i, x in enumerate(self.distances or ()) if x > limit)

    @property
    def wrong(self) -> frozenset[int]:
        """Ranks whose gradient is not finite, far from the others, or the one before once more."""
        return frozenset({*self.dropped, *self.far, *self.repeated})

    @property
    def faulty(self) -> frozenset[int]:
        """Ranks that are wrong in this step, or opposed to the others."""
        return self.wrong | frozenset(self.opposed)

    def line(self) -> str:
        """The record as a line of JSON; what is not known is left out."""
        distances = None if self.distances is None else [_number(x) for x in self.distances]
        values: dict[str, Any] = {
            "step": self.step,
            "dropped": [*self.dropped],
            "weights": None if self.weights is None else [*self.weights],
            "effective": self.effective,
            "reference_weight": self.reference_weight or None,
            "spread": None if self.spread is None else _number(self.spread),
            "distances": distances,
            "repeated": [*self.repeated] or None,
            "far": sorted(self.far) or None,
            "agreement": None if self.agreement is None else [_number(x) for x in self.agreement],
            "opposed": [*self.opposed] or None,
            "accused": [*self.accused] or None,
            "error": self.error,
        }
        return json.dumps({key: value for key, value in values.items() if value is not None})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SuspectRank:
    """A rank whose gradient is wrong again and again, or has no influence."""

    rank: int
    steps: int
    """In how many of the last `WINDOW` steps, or, without influence, for how many in a row."""
    host: str
    device: str
    reason: str
    """What was wrong, and how often, as a part of a sentence."""

    def __str__(self) -> str:
        return (
            f"Rank {self.rank} (host {self.host}, {self.device}) {self.reason}. Look at its data and its "
            "device."
        )


class Suspicion:
    """Finds ranks whose gradients are wrong again and again, or have no influence.

    Args:
        n: ranks.
        after: steps in a row without influence after which a rank is a suspect.
        faults: steps, of the last `WINDOW`, with a fault that can be seen after which it is one.
    """

    def __init__(self, n: int, after: int, faults: int = FAULTS) -> None:
        self._left_out = [0] * n
        self._faulty: list[list[int]] = [[] for _ in range(n)]
        """The last steps in which each rank was wrong."""
        self._opposed = set[int]()
        """Ranks that were named for it."""
        self._after, self._faults = after, faults

    def see(self, step: Step) -> list[tuple[int, int, str]]:
        """The ranks that have just become suspects, in how many steps, and why."""
        n = len(self._left_out)
        found: dict[int, tuple[int, str]] = {}
        if step.error is not None:
            # Where most are not finite, as when a scale of the loss is too large, it is nobody's fault.
            counted = range(n) if 2 * len(step.wrong) <= n else ()
            found = {rank: why for rank in counted if (why := self._wrong(rank, step)) is not None}
            found |= dict.fromkeys(step.accused, (1, "computed wrongly for others, as an audit found"))
            return [(rank, steps, reason) for rank, (steps, reason) in found.items()]
        for rank in range(n):
            self._left_out[rank] = self._left_out[rank] + 1 if rank in step.left_out else 0
            if self._left_out[rank] == self._after:
                reason = f"had no influence on the update for {self._after} steps in a row"
                found[rank] = (self._after, reason)
            if rank in step.opposed and rank not in self._opposed:
                self._opposed.add(rank)
                found[rank] = (1, "has gradients that point against those of the others, step after step")
            if (why := self._wrong(rank, step)) is not None:
                found[rank] = why
        return [(rank, steps, reason) for rank, (steps, reason) in found.items()]

    def _wrong(self, rank: int, step: Step) -> tuple[int, str] | None:
        """Count a fault of this rank; in how many steps there were faults, and which, if that is enough."""
        recent = [at for at in self._faulty[rank] if at > step.step - WINDOW]
        if rank in step.wrong:
            recent = [*recent, step.step][-self._faults - 1 :]
        self._faulty[rank] = recent
        if rank not in step.wrong or len(recent) != self._faults:
            return None
        return (
            self._faults,
            f"{_fault(rank, step)}, or the like, in {self._faults} of the last {WINDOW} steps",
        )

    def state(self) -> dict[str, Any]:
        """What `restore` takes: steps in a row without influence, and the last faulty steps, by rank."""
        return {"left_out": [*self._left_out], "faulty": [[*steps] for steps in self._faulty]}

    def moved(self, places: Sequence[int | None]) -> Suspicion:
        """The same of ranks that have other places now: where each was before, None for a new one."""
        found = Suspicion(len(places), self._after, self._faults)
        for now, before in enumerate(places):
            if before is not None:
                found._left_out[now] = self._left_out[before]
                found._faulty[now] = [*self._faulty[before]]
                found._opposed |= {now} if before in self._opposed else set()
        return found

    def restore(self, left_out: Sequence[int], faulty: Sequence[Sequence[int]]) -> None:
        """Go on from these; of another number of ranks they begin again."""
        if len(left_out) == len(faulty) == len(self._left_out):
            self._left_out = [*left_out]
            self._faulty = [[*steps] for steps in faulty]


def _fault(rank: int, step: Step) -> str:
    if rank in step.dropped:
        return "had a gradient with NaN or infinity"
    if rank in step.repeated:
        return "sent the gradient of the step before once more"
    return f"had a gradient more than {FAR:g} times as far from the update as the median"


def appender(path: str | Path, about: Mapping[str, Any]) -> Callable[[Step], None]:
    """A function that appends the line of a step to a file, which is whole after each.

    Where a later line cannot be written there is a warning, and training goes on.

    Args:
        path: of the file; a line about the ranks is appended at once.
        about: what is in that line.

    Raises:
        OSError: the file cannot be written.
    """
    append = line_appender(path)
    append(json.dumps({"ranks": about}), "the line about ranks")
    return lambda step: append(step.line(), f"step {step.step}")
