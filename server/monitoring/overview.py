"""`Overview`: all that the page of a run and `varangian status` show, at one moment, as JSON takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from varangian.server.monitoring.history import History, WindowRound

VERSION = 1
"""Of the form of the JSON."""
SHOWN = 500
"""Most workers that are listed: those with something to look at first."""
WITH_WEIGHTS = 200
"""Most workers whose weights of the last rounds are listed."""
GOOD = ("counted", "")
"""Outcomes of which nobody needs to look at."""


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A worker of the run. What the source does not know is None."""

    name: str
    state: str = ""
    """connected, absent, admitted, draining, leaving or expelled; empty where no server tells."""
    answer: str = ""
    """What it has done in the open round: pushed, faulty, declined, asked, or nothing."""
    outcome: str = ""
    """What became of it in the last round that it was in: counted, dropped, gated, missing, ..."""
    outcome_round: int | None = None
    reason: str = ""
    """The reason of the outcome."""
    seen_seconds: float | None = None
    """Seconds since the last sign of life of its process."""
    age: int | None = None
    """The age of the model of its last vector, in rounds; None where all are of their round."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rounds by outcome; one that was done again counts again."""
    weights: Sequence[float | str | None] = ()
    """In the last rounds: a weight, or the outcome where there is none; None if it was not in the round."""
    certificate_expires: float | None = None
    """Seconds since 1970."""
    byzantine: bool = False
    """Whether it attacks, in an experiment that says so."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A run at one moment."""

    run: str
    """The name of its folder."""
    title: str = ""
    """What it shows: the rule, and who attacks."""
    live: bool
    """Whether it is told by the server of the run, and not by its folder."""
    state: str
    """running, finished, failed, interrupted, or stopped: no server works on it, and it has no result."""
    sentence: str
    """The condition that the open round waits for, or the reason why the run is over."""
    round: int
    """The number of rounds that are done."""
    rounds: int
    present: int | None = None
    """Workers whose process is connected."""
    workers_total: int
    quorum: int | None = None
    f: int | None = None
    elapsed: float | None = None
    """Seconds since the start."""
    rate: float | None = None
    """Rounds in a second, lately."""
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(
        default_factory=dict[str, Sequence[tuple[int, float]]]
    )
    window: Sequence[int] = ()
    """The rounds whose weights are listed."""
    skipped: Sequence[int] = ()
    """Those of them without an update."""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the last round, by phase."""
    workers: Sequence[WorkerView] = ()
    refusals: Mapping[str, int] = field(default_factory=dict[str, int])
    received: int | None = None
    """Bytes of pushed vectors."""
    sent: int | None = None
    """Bytes of parameters in pulls."""
    checkpoint: int | None = None
    """The round of the newest checkpoint."""
    warnings: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings and figures worth a word, by name."""
    started: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"version": VERSION, **vars(self), "workers": [vars(worker) for worker in self.workers]}

    def json(self) -> bytes:
        """One line of standard JSON, ASCII only."""
        return json.dumps(self.plain(), separators=(",", ":"), allow_nan=False).encode()


def rounded(value: float) -> float:
    """Four digits, which is more than anybody sees."""
    return float(f"{value:.4g}")


def curves_of(history: History) -> dict[str, list[tuple[int, float]]]:
    """The curves of a history, by name."""
    return {name: curve.points for name, curve in history.curves.items() if curve.points}


def views(
    names: Sequence[str], history: History, known: Mapping[str, Mapping[str, Any]]
) -> list[WorkerView]:
    """The workers of a run, by name; of very many those with something to look at.

    Args:
        names: all of them.
        history: of the run.
        known: further fields of `WorkerView` by worker.
    """

    def doubtful(name: str) -> bool:
        outcome = history.outcomes.get(name)
        return known.get(name, {}).get("state") == "absent" or not (outcome is None or outcome.kind in GOOD)

    shown = sorted(names)
    if len(shown) > SHOWN:
        shown = sorted(sorted(shown, key=lambda name: not doubtful(name))[:SHOWN])
    window = list(history.window)
    return [
        _view(name, history, known.get(name, {}), window if place < WITH_WEIGHTS else ())
        for place, name in enumerate(shown)
    ]


def _view(
    name: str, history: History, known: Mapping[str, Any], window: Sequence[WindowRound]
) -> WorkerView:
    outcome = history.outcomes.get(name)
    return WorkerView(
        name=name,
        outcome="" if outcome is None else outcome.kind,
        outcome_round=None if outcome is None else outcome.round,
        reason="" if outcome is None else outcome.reason,
        age=history.ages.get(name),
        counts=dict(history.counts.get(name, ())),
        weights=[_cell(one, name) for one in window],
        **known,
    )


def _cell(one: WindowRound, name: str) -> float | str | None:
    if name in one.failed:
        return one.failed[name]
    return one.weights.get(name)
