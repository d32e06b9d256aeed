"""An aggregate on its way: what was done for it before it is known whose rows count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from varangian.aggregators import Aggregate, AggregationError
from varangian.aggregators.kernels.cores import every_core
from varangian.aggregators.streaming.incremental import Incremental
from varangian.aggregators.streaming.stream import Stream

Measured: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""From all rows, in the order of their workers, to what `Aggregator.__call__` takes as `measured`."""


@dataclass(frozen=True)
class PartialAggregate:
    """An aggregate that is begun before its rows are complete, and whose place in it is which."""

    work: Incremental
    workers: tuple[str, ...]
    """Everyone who may push, sorted."""
    gram: Measured | None = None
    """What is known of the rows of all of them, if they are measured by somebody else."""

    @property
    def lost(self) -> bool:
        return self.work.lost

    def worth(self, columns: int) -> bool:
        """Whether there is something to do when so many columns have come."""
        return not self.work.lost and self.work.until(columns) > self.work.columns

    def advance(self, rows: Mapping[str, Tensor], columns: int) -> None:
        """Go on with the columns that have come of these rows; the others will not come."""
        # What is left when all have come keeps everybody waiting.
        with every_core() if columns == self.work.d else nullcontext():
            self.work.advance(self._placed(rows), columns)

    def finish(self, rows: Mapping[str, Tensor], rng: torch.Generator, faults: int) -> Aggregate:
        present = [i for i, worker in enumerate(self.workers) if worker in rows]
        gram = self.gram if len(present) == len(self.workers) else None
        measured = None if gram is None else lambda: gram([rows[worker] for worker in self.workers])
        return self.work.finish(self._placed(rows), present, rng, faults, measured)

    def _placed(self, rows: Mapping[str, Tensor]) -> list[Tensor | None]:
        return [rows.get(worker) for worker in self.workers]


class Finished(Protocol):
    """An aggregate that was begun early."""

    def finish(self, rows: Mapping[str, Tensor], rng: torch.Generator, faults: int, /) -> Aggregate: ...


@dataclass(frozen=True)
class WindowedAggregate:
    """An aggregate of rows that are forgotten as they come, and whose they are."""

    work: Stream
    workers: tuple[str, ...]
    """Whose rows they are, sorted."""
    attempt: int
    """At the round: another one has nothing to do with it."""

    def holds(self, rows: int, faults: int) -> bool:
        """Whether it is still the right one when so many rows come, and so many workers are faulty."""
        return self.work.holds(rows, faults)

    def advance(self, rows: Mapping[str, Tensor], start: int) -> None:
        """Columns from `start` on of every row, which are forgotten after it."""
        self.work.advance([rows[worker] for worker in self.workers], start)

    def finish(self, rows: Mapping[str, Tensor], rng: torch.Generator, faults: int) -> Aggregate:
        if tuple(sorted(rows)) != self.workers:
            raise AggregationError("Columns were forgotten before it was known whose rows count.")
        return self.work.finish(len(rows), faults)
