"""Trust over time: the weight of each worker in each round of one run, and who was left out, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from varangian.config.worker_names import default_names
from varangian.experiments.results.cases import Vector
from varangian.experiments.results.run import Run

Kind: TypeAlias = Literal["dropped", "gated", "missing", "absent", "declined", "revoked"]
"""dropped: its vector was not finite, or proved it faulty; gated: it would have raised the held-out loss;
missing: it did not answer in time; absent: no process of it was connected."""
COLUMNS = 400
"""Most columns of the matrix: of more rounds, some that follow one another share one."""


@dataclass(frozen=True)
class Mark:
    """A worker that had no part in a round."""

    round: int
    """From 1."""
    kind: Kind
    reason: str
    """As recorded; it may have text of the worker in it."""


@dataclass(frozen=True)
class Trust:
    """Weights of workers over rounds."""

    run: Run
    workers: tuple[str, ...]
    attackers: frozenset[str]
    """The workers that attack, as the configuration of the experiment has it."""
    first: tuple[int, ...]
    """The first round of each column, from 1."""
    last: tuple[int, ...]
    weights: Vector
    """(workers, columns): the mean over the rounds of a column; NaN where a worker had no weight."""
    marks: Mapping[tuple[int, int], tuple[Mark, ...]]
    """By worker and column."""
    skipped: Mapping[int, str]
    """Rounds without an update, and the reason."""
    weighed: bool
    """Whether the rule gives weights: one that works on each coordinate, as the median, does not."""

    @property
    def attacking_share(self) -> float | None:
        """The share of the absolute weights that attackers had, on average over the columns."""
        sizes = np.abs(np.nan_to_num(self.weights))
        totals = sizes.sum(axis=0)
        if not self.weighed or not (totals > 0).any():
            return None
        theirs = sizes[[worker in self.attackers for worker in self.workers]].sum(axis=0)
        return float((theirs[totals > 0] / totals[totals > 0]).mean())


def trust(run: Run, most: int = COLUMNS) -> Trust:
    """The trust timeline of a run.

    Args:
        run: one that has records; its configuration names the attackers.
        most: columns of the matrix.

    Raises:
        ResultsError: a file of the run is damaged.
    """
    records = list(run.records())
    names = run.config.get("names") or default_names(int(run.config["workers"]))
    count = int((run.config.get("byzantine") or {}).get("count") or 0)
    place = {worker: i for i, worker in enumerate(names)}
    width = -(-len(records) // most) if records else 1
    columns = -(-len(records) // width)
    sums, counts = np.zeros((len(names), columns)), np.zeros((len(names), columns))
    marks: dict[tuple[int, int], list[Mark]] = {}
    skipped: dict[int, str] = {}
    for i, record in enumerate(records):
        column = i // width
        for worker, weight in _mapping(record, "weights").items():
            if worker in place and isinstance(weight, int | float):
                sums[place[worker], column] += weight
                counts[place[worker], column] += 1
        for worker, kind, reason in _left_out(record):
            if worker in place:
                mark = Mark(record["round"] + 1, kind, reason)
                marks.setdefault((place[worker], column), []).append(mark)
        if record.get("skipped"):
            skipped[record["round"] + 1] = str(record["skipped"])
    with np.errstate(invalid="ignore"):
        weights = np.where(counts > 0, sums / counts, np.nan)
    starts = range(0, len(records), width)
    return Trust(
        run=run,
        workers=tuple(names),
        attackers=frozenset(names[len(names) - count :]),
        first=tuple(records[i]["round"] + 1 for i in starts),
        last=tuple(records[min(i + width, len(records)) - 1]["round"] + 1 for i in starts),
        weights=weights,
        marks={at: tuple(found) for at, found in marks.items()},
        skipped=skipped,
        weighed=bool(counts.any()),
    )


def _left_out(record: Mapping[str, Any]) -> Iterator[tuple[str, Kind, str]]:
    """The workers without a part in a round, with the reason."""
    for worker, reason in _mapping(record, "dropped").items():
        yield worker, "dropped", str(reason)
    for worker, rise in _mapping(record, "gated").items():
        yield worker, "gated", _raised(rise)
    aside = _mapping(record, "not_waited_for")
    for worker in record.get("missing") or ():
        reason = str(aside.get(worker, "no answer in time"))
        yield worker, "absent" if reason == "absent" else "missing", reason
    for worker, reason in _mapping(record, "declined").items():
        yield worker, "declined", str(reason)
    for worker in record.get("revoked") or ():
        yield worker, "revoked", "its certificate was revoked"


def _raised(rise: Any) -> str:
    by = f" by {rise:.3g}" if isinstance(rise, int | float) else ""
    return f"its step would raise the held-out loss{by}"


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
