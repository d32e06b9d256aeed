"""The table of the weights of workers: one row for each round with weights, one column for each worker."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

CELLS = 100_000
"""Most weights in a table. When it is full every second row goes, and of the rounds to come as many."""


@dataclass(frozen=True)
class WorkerWeights:
    """What a table says of one worker."""

    worker: str
    rounds: int
    """Rows in which it has a weight."""
    mean: float
    """Its mean weight in those."""
    zero: int
    """Rows in which its weight is 0."""


class WeightTable:
    """The weights of workers by round; of a long run those of every second round, or every fourth."""

    def __init__(self, cells: int = CELLS) -> None:
        self._cells, self._size, self.every = cells, 0, 1
        self._rows: dict[int, Mapping[str, float]] = {}

    def add(self, round: int, weights: Mapping[str, float] | None) -> None:
        """Take the weights of a round. One that is done again takes back those from it on."""
        if self._rows and round <= next(reversed(self._rows)):
            for later in [known for known in self._rows if known >= round]:
                self._size -= len(self._rows.pop(later))
        if not weights or round % self.every:
            return
        self._rows[round] = weights
        self._size += len(weights)
        while self._size > self._cells and len(self._rows) > 1:
            self.every *= 2
            self._rows = {round: row for round, row in self._rows.items() if round % self.every == 0}
            self._size = sum(map(len, self._rows.values()))

    def read(self, records: Path, following: int) -> None:
        """Take the rounds before `following` from the rounds.jsonl of a run that goes on.

        What cannot be read is left out.
        """
        try:
            with records.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    self._take(line, following)
        except OSError:
            return

    def _take(self, line: str, following: int) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            return
        if not isinstance(found, dict):
            return
        record = cast("dict[str, Any]", found)
        round, weights = record.get("round"), record.get("weights")
        if isinstance(round, int) and round < following and isinstance(weights, dict):
            self.add(round, cast("dict[str, float]", weights))

    @property
    def workers(self) -> tuple[str, ...]:
        """All workers that have a weight in some row, sorted."""
        return tuple(sorted({worker for row in self._rows.values() for worker in row}))

    def rows(self) -> Iterator[tuple[int, list[float | None]]]:
        """Each round with the weights of `workers`; None where a worker has none."""
        workers = self.workers
        for round, row in self._rows.items():
            yield round, [row.get(worker) for worker in workers]

    def summary(self) -> list[WorkerWeights]:
        """What the table says of each worker."""
        found = list[WorkerWeights]()
        for worker in self.workers:
            weights = [row[worker] for row in self._rows.values() if worker in row]
            mean = sum(weights) / len(weights)
            found.append(WorkerWeights(worker, len(weights), mean, sum(weight == 0 for weight in weights)))
        return found

    def csv(self) -> str:
        """The table as CSV, with a header."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(["round", *self.workers])
        out.writerows([round, *("" if w is None else w for w in row)] for round, row in self.rows())
        return text.getvalue()

    def __len__(self) -> int:
        return len(self._rows)
