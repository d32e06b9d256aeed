"""Latest vectors (FedLaAvg): the rule sees the last vector of every registered worker, new or not.

n  registered workers     d  parameters     K  how many push in a round at most
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from varangian.aggregators import Rows
from varangian.aggregators.streaming.updated import UpdatedGram, worthwhile
from varangian.files import user_path
from varangian.server.protocol.events import Close, RollCall, Skip, Worker
from varangian.server.rows.latest_store import LatestStore, NoRoom, StoredDtype
from varangian.server.rows.source import StepInput
from varangian.server.training.learner import Measure

log = logging.getLogger(__name__)


@dataclass
class LatestVectors:
    """The latest vectors of all registered workers, also of those that did not push this time.

    A worker that proved faulty is left out of the round, and what it sent before is forgotten. One that has
    never pushed, or so long ago that its vector has expired, counts as zero. On a full disk a vector counts
    in its own round only, and the one before it counts on; `warn` is called once.
    """

    remembers: ClassVar[bool] = True
    fixed: ClassVar[str] = ""
    latest: LatestStore
    participants: int
    """K, for how many vectors are new in a round at most."""
    expire: int | None = None
    """Rounds after which a vector is forgotten."""
    warn: Callable[[str], None] = log.warning
    _warned: bool = field(init=False, default=False, repr=False)
    _unstored: dict[Worker, Tensor] = field(init=False, default_factory=dict, repr=False)
    """Vectors of the present round for which the disk had no space."""
    _gram: _IncrementalGram | None = field(init=False, repr=False)
    _new: set[Worker] = field(default_factory=set[Worker], init=False, repr=False)
    """Workers whose latest vector no step has seen."""
    _given: int | None = field(default=None, init=False, repr=False)
    """The last round whose rows a step was given, until another round begins or it is skipped."""

    def __post_init__(self) -> None:
        n = len(self.latest.workers)
        self._gram = _IncrementalGram(self.latest.workers) if worthwhile(n, self.participants) else None

    @classmethod
    def of(
        cls,
        workers: Sequence[Worker],
        d: int,
        participants: int,
        *,
        store: StoredDtype = "float32",
        folder: str | None = None,
        expire: int | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> LatestVectors:
        """Latest vectors with an empty store.

        Raises:
            OSError: the disk has no room, or there is no such folder.
        """
        latest = LatestStore(workers, d, dtype=store, folder=None if folder is None else user_path(folder))
        return cls(latest, participants, expire, warn)

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        self._store(close, rows)
        self._given = close.round
        latest = {**self.latest.rows(), **self._unstored}
        kept = {worker: row for worker, row in latest.items() if worker not in close.faults}
        measure = None
        if self._gram is not None and len(kept) == len(self.latest.workers):
            measure = self._gram.measure([kept[worker] for worker in self.latest.workers])
        ages = {**self.latest.ages(close.round), **dict.fromkeys(self._unstored, 0)}
        return StepInput(kept, measure=measure, ages=ages, fresh=frozenset(self._new))

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> None:
        self._store(skip, rows)

    def forget(self, worker: Worker) -> None:
        """Count this worker as one that has never pushed."""
        self._unstored.pop(worker, None)
        self._new.discard(worker)
        self.latest.forget([worker])
        self._mark_replaced([worker])

    def change(self, workers: Sequence[Worker], participants: int) -> None:
        """Keep the vectors of these workers in a store of their own, and measure all of them anew."""
        before, stay = self.latest, {*workers}
        self.latest = LatestStore(
            workers, before.plan.d, dtype=before.plan.dtype, folder=before.plan.folder
        )
        rows, self.participants = before.rows(), participants
        for worker, round in sorted(before.stamps.items()):
            if worker in stay:
                self._replace(worker, rows[worker], round)
        del rows
        before.close()
        self._unstored = {worker: row for worker, row in self._unstored.items() if worker in stay}
        self._new &= stay
        self._gram = _IncrementalGram(self.latest.workers) if worthwhile(len(stay), participants) else None

    def state(self) -> dict[str, Any]:
        return {
            "latest": self.latest.state(),
            "unstored": dict(self._unstored),
            "new": sorted(self._new),
            "given": self._given,
            "gram": None if self._gram is None else self._gram.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.latest.restore(state["latest"])
        self._unstored = {worker: row.clone() for worker, row in state["unstored"].items()}
        self._new, self._given = set(state["new"]), state["given"]
        if self._gram is not None and state["gram"] is not None:
            self._gram.restore(state["gram"])

    def close(self) -> None:
        self.latest.close()

    def _store(self, ended: RollCall, rows: Mapping[Worker, Tensor]) -> None:
        """Store the vectors of this round, and forget those of workers that proved faulty in it."""
        if self._given not in (None, ended.round):
            self._new.clear()
        self._given = None
        self._mark_replaced(self._unstored)
        rows = {worker: row.cpu() for worker, row in rows.items()}  # of a GPU, the store is not there
        self._unstored = {w: rows[w] for w in sorted(rows) if not self._replace(w, rows[w], ended.round)}
        self._mark_replaced(rows)
        self._new.update(rows)
        if self.expire is not None:
            self._mark_replaced(self.latest.expire(ended.round - self.expire))
        self._mark_replaced(self.latest.forget(sorted(ended.faults)))

    def _replace(self, worker: Worker, row: Tensor, round: int) -> bool:
        """Store one vector; returns whether there was space for it."""
        try:
            self.latest.replace(worker, row, round)
        except NoRoom as error:
            if not self._warned:
                self.warn(f"{error} The run goes on; such vectors count in their own round only")
            self._warned = True
            return False
        return True

    def _mark_replaced(self, workers: Iterable[Worker]) -> None:
        if self._gram is not None:
            self._gram.mark_replaced(workers)


class _IncrementalGram:
    """The Gram matrix of all latest vectors, measured anew for those that were replaced."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._gram = UpdatedGram(len(workers))
        self._index = {worker: i for i, worker in enumerate(workers)}

    def mark_replaced(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            self._gram.mark_replaced(self._index[worker])

    def state(self) -> dict[str, Any]:
        return self._gram.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._gram.restore(state)

    def measure(self, rows: Sequence[Tensor]) -> Measure:
        """A function that measures these rows, of all workers, from a point."""
        return lambda reference: self._gram.products(Rows.of(rows), reference)
