"""Merging: from the vectors that were pushed for a round to the rows that the rule is given.

n  registered workers     d  parameters     K  how many push in a round at most
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from varangian.aggregators import Mixing, Rows
from varangian.aggregators.mixings.scaled import Scaled
from varangian.aggregators.streaming.updated import UpdatedGram, worthwhile
from varangian.files import user_path
from varangian.server.protocol.events import Close, RollCall, Skip, Worker
from varangian.server.rows.latest_store import Kept, LatestStore, NoRoom
from varangian.server.training.learner import Aggregation, Measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepInput:
    """What a step is made of."""

    rows: Mapping[Worker, Tensor]
    """(d,) each; of the workers whose names the record speaks of."""
    mix: tuple[Mixing, ...] = ()
    """Mixings of this round alone, before those of the rule."""
    measure: Measure | None = None
    """Measures the rows, in the order of their names, where that need not be done anew."""
    aggregation: Aggregation | None = None
    """Makes the update in place of the rule."""
    ages: Mapping[Worker, int] | None = None
    """How many rounds old the model was that a row was made for; None where all are of this round."""
    fresh: Collection[Worker] | None = None
    """Whose rows no step before has seen; None for all of them."""


class RowSource(Protocol):
    """From the vectors that were pushed for a round to the rows that the rule sees.

    All of it is called in the learner's thread, one after the other.
    """

    remembers: ClassVar[bool]
    """Whether vectors of one round count in later ones, so that those of a skipped round are read too."""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor], /) -> StepInput:
        """The rows of a closed round. `rows` are those that were pushed; they last for the step."""
        ...

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor], /) -> None:
        """A round had no update. `rows` are those pushed for it, unless `step_input` had them already."""
        ...

    def forget(self, worker: Worker, /) -> None:
        """What this worker has sent so far is in no later round: its certificate was revoked."""
        ...

    def close(self) -> None:
        """Give back what was kept."""
        ...


class Pushed:
    """The rule sees what was pushed."""

    remembers: ClassVar[bool] = False

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        return StepInput(rows, ages=close.ages or None)

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> None:
        """Nothing is kept."""

    def forget(self, worker: Worker) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing was kept."""


class WeightedByAge(Pushed):
    """What was pushed, each row times what it counts at its age, before anything else looks at it."""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        factors = tuple(close.factors[worker] for worker in sorted(rows))
        if all(factor == 1 for factor in factors):
            return super().step_input(close, rows)
        return StepInput(rows, mix=(Scaled(factors),), ages=close.ages)


@dataclass
class LatestVectors:
    """The latest vectors of all registered workers: of those who pushed, and of those who are away.

    Whoever proved faulty is left out of the round, and what it sent before is forgotten. A worker that was
    never heard of, or not for so long that its vector has expired, counts as zero. On a full disk a vector
    counts in its own round; after it the one before counts on. `warn` is told once.
    """

    remembers: ClassVar[bool] = True
    latest: LatestStore
    participants: int
    """K."""
    expire: int | None = None
    """Rounds after which a vector is forgotten."""
    warn: Callable[[str], None] = log.warning
    _warned: bool = field(init=False, default=False, repr=False)
    _passing: dict[Worker, Tensor] = field(init=False, default_factory=dict, repr=False)
    """Vectors of the round in hand that could not be kept."""
    _gram: _IncrementalGram | None = field(init=False, repr=False)
    _new: set[Worker] = field(default_factory=set[Worker], init=False, repr=False)
    """Whose latest vectors no step has seen."""
    _given: int | None = field(default=None, init=False, repr=False)
    """The last round whose rows were given to a step, unless that came to nothing."""

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
        store: Kept = "float32",
        folder: str | None = None,
        expire: int | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> LatestVectors:
        """With nothing in it.

        Raises:
            OSError: the disk has no room, or there is no such folder.
        """
        latest = LatestStore(workers, d, dtype=store, folder=None if folder is None else user_path(folder))
        return cls(latest, participants, expire, warn)

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        self._keep(close, rows)
        self._given = close.round
        latest = {**self.latest.rows(), **self._passing}
        kept = {worker: row for worker, row in latest.items() if worker not in close.faults}
        measure = None
        if self._gram is not None and len(kept) == len(self.latest.workers):
            measure = self._gram.measure([kept[worker] for worker in self.latest.workers])
        ages = {**self.latest.ages(close.round), **dict.fromkeys(self._passing, 0)}
        return StepInput(kept, measure=measure, ages=ages, fresh=frozenset(self._new))

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> None:
        self._keep(skip, rows)

    def forget(self, worker: Worker) -> None:
        """As if the worker had never been heard of."""
        self._passing.pop(worker, None)
        self._new.discard(worker)
        self.latest.forget([worker])
        self._changed([worker])

    def close(self) -> None:
        self.latest.close()

    def _keep(self, ended: RollCall, rows: Mapping[Worker, Tensor]) -> None:
        """Vectors of this round, and none of those who proved faulty in it."""
        if self._given not in (None, ended.round):
            self._new.clear()
        self._given = None
        self._changed(self._passing)
        self._passing = {w: rows[w] for w in sorted(rows) if not self._kept(w, rows[w], ended.round)}
        self._changed(rows)
        self._new.update(rows)
        if self.expire is not None:
            self._changed(self.latest.expire(ended.round - self.expire))
        self._changed(self.latest.forget(sorted(ended.faults)))

    def _kept(self, worker: Worker, row: Tensor, round: int) -> bool:
        """Keep a vector; whether there was room for it."""
        try:
            self.latest.replace(worker, row, round)
        except NoRoom as error:
            if not self._warned:
                self.warn(f"{error} The run goes on; such vectors count in their own round only")
            self._warned = True
            return False
        return True

    def _changed(self, workers: Iterable[Worker]) -> None:
        if self._gram is not None:
            self._gram.changed(workers)


class _IncrementalGram:
    """The Gram matrix of all latest vectors, of which only a few change in a round."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._gram = UpdatedGram(len(workers))
        self._place = {worker: i for i, worker in enumerate(workers)}

    def changed(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            self._gram.replaced(self._place[worker])

    def measure(self, rows: Sequence[Tensor]) -> Measure:
        """Measures the rows of all workers from a point."""
        return lambda reference: self._gram.products(Rows.of(rows), reference)
