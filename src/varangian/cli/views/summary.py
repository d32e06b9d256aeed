"""The summary of a run: weights of the workers, dropped and missing ones, speed, and the final lines."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varangian.launch import RunResult
    from varangian.server.observability.record import RoundRecord, Scores

FEW = GATED = 5
"""Up to so many missing workers, or some that were gated, are named one by one."""

IN_A_LINE, IN_THE_END = 6, 30
"""Most metrics that are shown while a run goes on, and when it is over."""


@dataclass
class RunSummary:
    """Sums over the rounds of a run."""

    declared: int | None = None
    """The f of the run."""
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
    """The reason why each worker was dropped, the last time."""
    gated: Counter[str] = field(default_factory=Counter)
    """Rounds in which the gate has left out the vector of each worker."""
    missing: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    """The number of vectors of each age in rounds, where that is known."""
    first: float = 0.0
    """Time at which the first round was added, by a monotonic clock."""
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
        self.gated.update(record.gated.keys())
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


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10_000 or value == 0 else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def scores_of(scores: Scores | None) -> list[tuple[str, str]]:
    """The scores of the model on held-out data, as names and values; of an average one number."""
    if scores is None:
        return []
    found = [("loss", number(scores.loss))]
    if scores.accuracy is not None:
        found.append(("accuracy", percent(scores.accuracy)))
    found += _metrics(scores.metrics, IN_A_LINE)
    if scores.ema_accuracy is not None:
        found.append(("average", percent(scores.ema_accuracy)))
    elif scores.ema_loss is not None:
        found.append(("average", number(scores.ema_loss)))
    return found


def summary_lines(
    result: RunResult, summary: RunSummary, byzantine: Sequence[str]
) -> list[tuple[str, str]]:
    """The end of a run, as names and values."""
    lines = [] if result.accuracy is None else [("accuracy", percent(result.accuracy))]
    lines += [
        ("loss", number(result.loss)),
        *_metrics(result.metrics, IN_THE_END),
        *_average(result),
        ("rounds", _rounds(result, summary)),
        ("seconds", f"{result.seconds:.1f}"),
        ("digest", result.digest),
    ]
    mass = summary.share(byzantine) if byzantine else None
    if mass is not None:
        lines.append(("byzantine mass", f"{percent(mass)} of the weight, {len(byzantine)} workers"))
    for worker, times in sorted(summary.drops.items()):
        lines.append((f"dropped {worker}", f"{times} times, last: {summary.reasons[worker]}"))
    if summary.drops and summary.declared is not None:
        lines.append(("proven faults", bound_of_f(len(summary.drops), summary.declared)))
    if summary.gated:
        counts = ", ".join(f"{worker} {times}" for worker, times in summary.gated.most_common(GATED))
        lines.append(("gated", f"{counts} times"))
    lines += _missing_lines(summary)
    if result.refused:
        lines.append(("refused", ", ".join(f"{code} {count}" for code, count in result.refused.items())))
    if any(summary.ages):
        mean = sum(age * count for age, count in summary.ages.items()) / summary.ages.total()
        lines.append(("ages", f"mean {mean:.1f} rounds, at most {max(summary.ages)}"))
    lines += [("reason", result.reason), ("folder", str(result.folder or "-"))]
    if result.folder is not None and result.outcome != "interrupted":
        lines.append(("report", report_command(result.folder)))
    return lines


def bound_of_f(faulty: int, declared: int) -> str:
    """A lower bound of the number of Byzantine workers, from those proven faulty in a run."""
    workers = "1 worker" if faulty == 1 else f"{faulty} workers"
    if faulty > declared:
        return f"{workers}, more than the declared f = {declared}: no rule promises anything then"
    return f"{workers}: f is at least {faulty}, and {declared} are declared"


def _metrics(metrics: Mapping[str, float] | None, most: int) -> list[tuple[str, str]]:
    """The first metrics of the model, and how many more there are, as of many classes."""
    own = [(name, number(value)) for name, value in (metrics or {}).items() if not name.startswith("ema_")]
    more = len(own) - most
    return own if more <= 0 else [*own[:most], ("and", f"{more} more metrics")]


def report_command(folder: Path) -> str:
    """The command that makes a report of the runs in a folder."""
    return f"varangian report {shlex.quote(str(folder))}"


def _average(result: RunResult) -> list[tuple[str, str]]:
    """The scores of the average of the model, where there is one."""
    if result.ema_loss is None:
        return []
    parts = [] if result.ema_accuracy is None else [f"accuracy {percent(result.ema_accuracy)}"]
    parts.append(f"loss {number(result.ema_loss)}")
    others = result.metrics or {}
    parts += [f"{n.removeprefix('ema_')} {number(v)}" for n, v in others.items() if n.startswith("ema_")]
    return [("of the average", ", ".join(parts))]


def _missing_lines(summary: RunSummary) -> list[tuple[str, str]]:
    """Lines about workers that did not answer in time, one by one if they are few."""
    if len(summary.missing) <= FEW:
        return [
            (f"missing {worker}", f"{times} times") for worker, times in sorted(summary.missing.items())
        ]
    (worker, times), *_ = summary.missing.most_common(1)
    total = f"{len(summary.missing)} workers, {summary.missing.total()} times in all"
    return [("missing", f"{total}, most of them {worker}, {times} times")]


def _rounds(result: RunResult, summary: RunSummary) -> str:
    skipped = f", {summary.skipped} of them without an update" if summary.skipped else ""
    return f"{result.rounds}{skipped}"
