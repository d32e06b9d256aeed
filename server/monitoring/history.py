"""History of a run as its page shows it: scores over the rounds, and what became of each worker's vectors.

It is made from the records of rounds, one after the other, of a run that goes on or from its file; either
way it costs a few operations for each worker and round, and stays small however long the run is.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from varangian.protos.text import escape

POINTS = 1000
"""Most points of a curve."""
WINDOW = 60
"""The last rounds of which all weights are kept."""
SCORES = ("loss", "accuracy", "train_loss", "ema_loss", "ema_accuracy")
"""Fields of a record that are drawn; so are the other metrics, and `effective`."""
CURVES = 12
"""Most curves."""
REASON = 200
"""Characters of a reason."""


@dataclass
class Curve:
    """A value over the rounds: all of them, or of a long run some, and the extremes among them."""

    points: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    def add(self, round: int, value: float) -> None:
        self.points.append((round, float(f"{value:.5g}")))
        if len(self.points) >= POINTS:
            self.points = thinned(self.points)

    def cut(self, round: int) -> None:
        """Forget this round and what follows it, which is done again."""
        self.points = [point for point in self.points if point[0] < round]


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Half of the points: the lowest and the highest of each four, and the first and the last of all."""
    kept: list[tuple[int, float]] = points[:1]
    for start in range(1, len(points) - 1, 4):
        four = points[start : min(start + 4, len(points) - 1)]
        kept += sorted({min(four, key=lambda p: p[1]), max(four, key=lambda p: p[1])})
    return [*kept, points[-1]]


@dataclass(frozen=True)
class Outcome:
    """What became of a worker in a round."""

    round: int
    kind: str
    """counted, dropped, gated, missing, declined, revoked or unused: the round had no update."""
    reason: str = ""


@dataclass(frozen=True)
class WindowRound:
    """A round of the window."""

    round: int
    skipped: bool
    weights: Mapping[str, float]
    failed: Mapping[str, str]
    """Workers without a vector that counts, with the kind of their outcome."""


@dataclass
class History:
    """What the records of a run said so far."""

    curves: dict[str, Curve] = field(default_factory=dict[str, Curve])
    window: deque[WindowRound] = field(default_factory=lambda: deque[WindowRound](maxlen=WINDOW))
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    counts: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """The number of rounds of each worker by kind of outcome; one that was done again counts again."""
    ages: dict[str, int] = field(default_factory=dict[str, int])
    latest: dict[str, float] = field(default_factory=dict[str, float])
    """The newest value of each curve."""
    last: int = -1
    """The last round."""
    updates: int = 0
    skipped: str = ""
    """The reason why the last round had no update; empty if it had one."""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the last round, by phase."""
    members: tuple[str, ...] = ()
    """The workers after the last change; empty while they are those of the start."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the record of the next round: the fields of a `RoundRecord`."""
        round = int(record["round"])
        if round <= self.last:
            self.cut(round)
        self.last = round
        self.skipped = escape(str(record.get("skipped") or ""), REASON)
        self.updates += not self.skipped
        self.seconds = record.get("seconds") or {}
        if (membership := record.get("membership")) and membership.get("workers"):
            self.members = tuple(map(str, membership["workers"]))
        self._add_scores(round, record)
        self._add_workers(round, record)

    def cut(self, round: int) -> None:
        """Forget this round and what follows it, which is done again by a run that goes on."""
        for name, curve in self.curves.items():
            curve.cut(round)
            if curve.points:
                self.latest[name] = curve.points[-1][1]
            else:
                self.latest.pop(name, None)
        self.outcomes = {name: one for name, one in self.outcomes.items() if one.round < round}
        self.last = min(self.last, round - 1)
        kept = [one for one in self.window if one.round < round]
        self.window.clear()
        self.window.extend(kept)

    def _add_scores(self, round: int, record: Mapping[str, Any]) -> None:
        values = {name: record.get(name) for name in SCORES} | {"effective": record.get("effective")}
        for name, value in {**values, **(record.get("metrics") or {})}.items():
            if isinstance(value, int | float) and math.isfinite(value):
                name = escape(str(name), 60)
                if name in self.curves or len(self.curves) < CURVES:
                    self.curves.setdefault(name, Curve()).add(round, float(value))
                    self.latest[name] = float(value)

    def _add_workers(self, round: int, record: Mapping[str, Any]) -> None:
        weights: Mapping[str, float] = record.get("weights") or {}
        failed: dict[str, tuple[str, str]] = {}
        waits: Mapping[str, str] = record.get("not_waited_for") or {}
        for name in record.get("missing") or ():
            failed[name] = "missing", str(waits.get(name) or "it did not answer in time")
        for name in record.get("revoked") or ():
            failed[name] = "revoked", "its certificate is revoked, or it was expelled"
        for kind in ("declined", "dropped"):
            reasons: Mapping[str, str] = record.get(kind) or {}
            failed |= {name: (kind, str(reason)) for name, reason in reasons.items()}
        for name in record.get("gated") or {}:
            failed[name] = "gated", "its step would have raised the held-out loss"
        for name in {*weights, *(record.get("pushes") or ())} - failed.keys():
            self._note(name, Outcome(round, "unused" if self.skipped else "counted", self.skipped))
        for name, (kind, reason) in failed.items():
            self._note(name, Outcome(round, kind, escape(reason, REASON)))
        self.ages |= record.get("ages") or {}
        kinds = {name: kind for name, (kind, _) in failed.items()}
        shown = {name: float(f"{weight:.4g}") for name, weight in weights.items() if math.isfinite(weight)}
        self.window.append(WindowRound(round, bool(self.skipped), shown, kinds))

    def _note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self.counts.setdefault(name, Counter())[outcome.kind] += 1

    def add_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take many records."""
        for record in records:
            self.add(record)
