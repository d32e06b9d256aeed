"""Aggregates the columns that everyone has sent, while the rest is on its way.

A block of columns is done, in the learner's thread, as soon as every upload of the round has passed it.
Whose rows will count is not known by then, so this begins when there is reason to guess: everyone who has
not proved faulty is uploading or has pushed; or a quorum has pushed, and there is time until the deadline.
Someone who comes later, or comes again, is a reason to begin anew, but not for ever: a worker that comes
and goes must not keep a core busy.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from varangian.server.protocol.events import Phase, Refusal, Worker
from varangian.server.protocol.roll_call import passed_over
from varangian.server.protocol.synchronous import RoundMachine
from varangian.server.rows.slot import RowStore, Slot
from varangian.server.training.learner import Learner
from varangian.server.training.partial import PartialAggregate

InThread: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]

STARTS = 4
"""Attempts at one round; after that its aggregation begins when it is closed."""


class EarlyAggregation:
    """The early work of one round after the other.

    Args:
        machine: asked, never moved.
        learner: says how to begin; not touched otherwise.
        rows: where uploads land.
        in_thread: runs something in the learner's thread.
        standing: why an upload would not count any more, if so.
    """

    def __init__(
        self,
        machine: RoundMachine,
        learner: Learner,
        rows: RowStore,
        in_thread: InThread,
        standing: Callable[[Slot], Refusal | None],
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._rows = rows
        self._in_thread = in_thread
        self.overtaken = standing
        self._block = learner.block
        self._pays = learner.parameters.numel() > self._block
        self._sources: dict[Worker, Slot] = {}
        self._seen: dict[Worker, int] = {}
        self._round = -1
        self._starts = 0
        self._attempt: PartialAggregate | None = None
        self._members: dict[Worker, Slot] = {}
        self._task: asyncio.Task[None] | None = None

    def refuses(self, worker: Worker, round: int) -> None:
        """Nobody: that is for the machine to do."""

    def rows(self, workers: Iterable[Worker]) -> Mapping[Worker, Tensor]:
        return self._rows.rows(workers)

    def pin(self, workers: Iterable[Worker]) -> None:
        """A round that was skipped leaves nothing to be read."""

    unpin = pin

    def free(self, slot: Slot) -> int:
        return len(self._rows) - slot.columns

    def place(self, slot: Slot) -> tuple[Tensor, int, int]:
        row = self._rows.row(slot.worker)
        return row, slot.columns, self.free(slot)

    async def room(self, slot: Slot) -> None:
        """There always is."""

    def opened(self, slot: Slot) -> None:
        """An upload begins."""
        if slot.round != self._round:
            self._forget(slot.round)
        self._sources[slot.worker] = slot
        self._seen[slot.worker] = 0
        self.look()

    def came(self, slot: Slot) -> None:
        """There is more of it."""
        passed = self._passed(slot)
        if passed != self._seen.get(slot.worker):
            self._seen[slot.worker] = passed
            self.look()

    def gone(self, slot: Slot) -> None:
        """It will not be completed, or has proved faulty."""
        if self._sources.get(slot.worker) is slot:
            del self._sources[slot.worker]
            self.look()

    def withdrawn(self, worker: Worker) -> None:
        """Its vector does not count any more, and another one might: what is begun is of no use."""
        self._sources.pop(worker, None)
        self._attempt, self._members = None, {}

    def look(self) -> None:
        """Begin, begin anew or go on, if it is time to."""
        if self._pays and self._open and self._task is None and self._next() is not None:
            self._task = asyncio.create_task(self._work())

    async def claimed(self) -> PartialAggregate | None:
        """What was done for the round that has closed, once nothing is being done any more."""
        if self._task is not None:
            await self._task
        begun = self._attempt
        self._forget(-1)
        return begun

    @property
    def _open(self) -> bool:
        state = self._machine.state
        return state.phase is Phase.OPEN and state.round == self._round

    async def _work(self) -> None:
        while self._open and (due := self._next()) is not None:
            attempt, rows, to = due
            await self._in_thread(functools.partial(attempt.advance, rows, to))
        self._task = None  # after an error it stays, for whoever claims the round

    def _next(self) -> tuple[PartialAggregate, Mapping[Worker, Tensor], int] | None:
        """What to do now: an attempt, its rows and how far they have come."""
        here = self._here()
        attempt = self._attempt_at(here)
        if attempt is None:
            return None
        self._members = {worker: slot for worker, slot in self._members.items() if here.get(worker) is slot}
        to = min((slot.columns for slot in self._members.values()), default=0)
        if attempt.worth(to):
            return attempt, self._rows.rows(self._members), to
        return None

    def _here(self) -> dict[Worker, Slot]:
        """Whose vectors may still count."""
        faults = self._machine.state.faults
        return {w: slot for w, slot in self._sources.items() if slot.sound and w not in faults}

    def _attempt_at(self, here: Mapping[Worker, Slot]) -> PartialAggregate | None:
        """The attempt to go on with; None while there is no reason for any."""
        stale = self._attempt is None or self._attempt.lost
        if not stale and all(self._members.get(worker) is slot for worker, slot in here.items()):
            return self._attempt
        if self._starts >= STARTS or not self._timely(here):
            return self._attempt
        self._starts += 1
        self._members = dict(here)
        self._attempt = self._learner.begin(self._machine.policy.workers, self._faults)
        return self._attempt

    def _timely(self, here: Mapping[Worker, Slot]) -> bool:
        state, policy = self._machine.state, self._machine.policy
        aside = state.absent | state.declined.keys() | passed_over(policy, state)
        aside -= here.keys() | state.faults.keys()
        everyone = len(here) + self._faults + len(aside) == len(policy.workers)
        return everyone or len(state.pushed) + len(state.faults) >= policy.quorum

    @property
    def _faults(self) -> int:
        """How many have proved faulty, or will when they have sent the rest."""
        unsound = {worker for worker, slot in self._sources.items() if not slot.sound}
        return len(unsound | self._machine.state.faults.keys())

    def _passed(self, slot: Slot) -> int:
        """A number that changes when there may be something to do."""
        if slot.full or not slot.sound:
            return -1 if slot.sound else -2
        return slot.columns // self._block

    def _forget(self, round: int) -> None:
        self._round, self._starts, self._attempt = round, 0, None
        self._sources, self._seen, self._members = {}, {}, {}
