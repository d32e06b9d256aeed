"""Rounds with `memory: window`: carries out what `window` decides, with a few blocks of each row."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor

from varangian.aggregators import Aggregate, AggregationError
from varangian.aggregators.streaming.stream import Stream, block_columns
from varangian.protos.encoding import FLOAT32, Dtype
from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Close, Seconds, Worker
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.quorum import passed_over
from varangian.server.protocol.state import Phase
from varangian.server.protocol.window import Window
from varangian.server.rounds.clock import Alarm, Clock
from varangian.server.rows.slot import Slot, SlotListener
from varangian.server.rows.storage import allocate_rows
from varangian.server.training.learner import Aggregation, Learner

InThread: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]

BLOCKS = 8
"""Of each row that are kept: enough that uploads which take turns do not wait for each other."""
LOST = -1
LONGEST: Seconds = 15.0
"""To wait for the slowest, however long a round may take."""


def window_columns(d: int) -> int:
    """Columns of each row that are kept, of d."""
    size = block_columns()
    return min(BLOCKS * size, -(-d // size) * size)


@dataclass(frozen=True)
class WindowListener:
    """What windowed rounds ask of the coordinator, and tell it."""

    refusal: Callable[[Slot], Refusal | None]
    """Why an upload would not count any more, whatever the window says."""
    settled: Callable[[Sequence[Slot]], Refusal | None]
    """All of these count; or why none does."""
    failed: Callable[[Exception], None]
    """Nothing can go on."""


@dataclass(frozen=True)
class _Update:
    """An update of which some blocks of columns may be done."""

    stream: Stream
    workers: tuple[Worker, ...]
    """Whose rows it is made of, sorted."""
    attempt: int
    """At the round: another one has nothing to do with it."""


class WindowedRounds:
    """The rows of one round after the other, none of them ever whole.

    It is the `RowStorage` of its rounds: a few blocks of each row, in a ring.

    Args:
        machine: asked, never moved.
        learner: says how to reduce a block; not touched otherwise.
        in_thread: runs something in the learner's thread.
        clock: where time comes from.
        report: is told what becomes of the slots.
        dtype: how numbers are kept.
    """

    def __init__(
        self,
        machine: Machine,
        learner: Learner,
        in_thread: InThread,
        clock: Clock,
        report: WindowListener,
        dtype: Dtype = FLOAT32,
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._in_thread = in_thread
        self._clock = clock
        self._report = report
        self._d, self._block = learner.parameters.numel(), block_columns()
        workers, self._kept = machine.policy.workers, window_columns(self._d)
        self._rows = dict(zip(workers, allocate_rows(len(workers), self._kept, dtype), strict=True))
        self.listener = SlotListener(self.refusal, self.progressed, self.room)
        patience = min(machine.policy.deadline / 4, LONGEST)
        self._window = Window(machine.policy, self._d, self._block, BLOCKS, patience)
        self._attempts = WeakKeyDictionary[Slot, int]()
        """In which attempt at the round each slot was opened; `LOST` if nothing can come of it any more."""
        self._slots: dict[Worker, Slot] = {}
        self._answers: dict[Slot, Refusal | None] = {}
        self._update: _Update | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting = set[asyncio.Future[None]]()
        self._alarm = Alarm(clock, self.look)

    def lend(self, worker: Worker, round: int) -> Refusal | None:
        """Why a worker need not offer anything for this round any more."""
        self._follow()
        return self._window.refuses(worker) if round == self._window.round else None

    def place(self, worker: Worker, column: int) -> tuple[Tensor, int, int]:
        entry = column % self._kept
        return self._rows[worker], entry, min(self._kept - entry, self.free(worker, column))

    def free(self, worker: Worker, column: int) -> int:
        return self._window.limit - column

    def rows(self, workers: Iterable[Worker]) -> Mapping[Worker, Tensor]:
        return {worker: self._rows[worker] for worker in workers}

    def hold(self, workers: Iterable[Worker]) -> None:
        """A round that was skipped leaves nothing to be read."""

    def release(self, workers: Iterable[Worker]) -> None:
        """As `hold`."""

    def refusal(self, slot: Slot) -> Refusal | None:
        """Why the vector in the slot would not count any more, if so."""
        if refusal := self._report.refusal(slot):
            return refusal
        if not slot.sound:
            return None  # only its digest says whether the worker or the line is to blame
        return None if self._attempts.get(slot) == self._window.attempt else Refusal.RESTARTED

    def progressed(self, slot: Slot) -> None:
        """The slot was opened, more numbers have landed in it, or it was given up."""
        now = self._clock.now()
        if slot.closed:
            if self._lose(slot) == self._window.attempt:
                self._window.lost(slot.worker, now)
            self._window.cleared(slot.worker, now)
            self.look()
        elif slot not in self._attempts:
            self._follow()
            self._slots[slot.worker] = slot
            self._attempts[slot] = self._window.attempt
            self._window.offered(slot.worker, now)
            self.look()
        elif not slot.sound:
            if self._lose(slot) != LOST:
                self._window.failed(slot.worker, now)
                self.look()
        else:
            before = self._window.ready
            self._window.came(slot.worker, slot.columns)
            if self._window.ready != before:
                self.look()

    async def room(self, slot: Slot) -> None:
        """Return when there is some.

        Raises:
            Overtaken: there will be none.
        """
        while slot.crowded:
            await self._change()
            slot.check()

    def withdrawn(self, worker: Worker) -> None:
        """Its upload cannot count any more; if the members are settled on, the others begin anew."""
        self._follow()
        if (slot := self._slots.pop(worker, None)) is not None:
            self._lose(slot)
            self._window.lost(worker, self._clock.now())
            self._window.cleared(worker, self._clock.now())

    async def counted(self, slot: Slot) -> Refusal | None:
        """Return when all of them count, or why this one does not."""
        self._window.completed(slot.worker)
        self.look()
        while slot not in self._answers:
            if refusal := slot.refusal:
                return refusal
            await self._change()
        return self._answers.pop(slot)

    def look(self) -> None:
        """Do what has become possible, or necessary."""
        self._follow()
        window, now = self._window, self._clock.now()
        window.tick(now)
        if window.settled and self._slots:
            self._settle()
        elif self._task is None and window.ready > window.base:
            self._task = asyncio.create_task(self._work())
        self._alarm.set(window.wake_at)
        for reader in self._waiting:
            if not reader.done():
                reader.set_result(None)

    async def aggregation(self, close: Close) -> Aggregation:
        """Makes the update of the round that has closed, of blocks that are all done by now."""
        if self._task is not None:
            await self._task
        update = self._update

        def finish() -> Aggregate:
            if update is None or update.workers != tuple(sorted(close.workers)):
                raise AggregationError("Columns were forgotten before it was known whose rows count.")
            return update.stream.finish(len(close.workers), len(close.faults))

        return finish

    def _follow(self) -> None:
        """What the machine has done meanwhile."""
        state, window = self._machine.state, self._window
        if state.phase is Phase.OPEN and state.round != window.round:
            window.begin(state.round)
            self._slots, self._update = {}, None
        if state.faults.keys() != window.faulty and not window.settled and state.round == window.round:
            window.proved(state.faults, self._clock.now())
            if window.fixed and not self._begun().stream.holds(len(window.columns), len(window.faulty)):
                window.restart(frozenset(), self._clock.now())
        aside = state.declined.keys() | state.absent | state.revoked.keys()
        aside |= passed_over(self._machine.policy, state)
        if aside != window.aside and state.round == window.round:
            window.stands(aside, self._clock.now())

    def _settle(self) -> None:
        slots = [self._slots[worker] for worker in self._window.columns]
        self._slots = {}
        refusal = self._report.settled(slots)
        for slot in slots:
            self._lose(slot)
            self._answers[slot] = refusal

    def _lose(self, slot: Slot) -> int:
        """Expect nothing of the slot any more; the attempt that it belonged to."""
        attempt, self._attempts[slot] = self._attempts[slot], LOST
        return attempt

    def _begun(self) -> _Update:
        """The update in the making, of this attempt."""
        window = self._window
        if self._update is None or self._update.attempt != window.attempt:
            workers = tuple(sorted(window.columns))
            stream = self._learner.stream(len(workers), len(window.faulty))
            self._update = _Update(stream, workers, window.attempt)
        return self._update

    async def _work(self) -> None:
        window = self._window
        while window.ready > window.base:
            attempt, start = window.attempt, window.base
            stop = min(start + self._block, self._d)
            update, at = self._begun(), start % self._kept
            part = [self._rows[worker][at : at + stop - start] for worker in update.workers]
            try:
                await self._in_thread(functools.partial(update.stream.advance, part, start))
            except Exception as error:
                self._report.failed(error)
                return
            if window.attempt == attempt:
                window.reduced(stop, self._clock.now())
                self.look()
        self._task = None  # after an error it stays, and nothing more is done
        self.look()

    async def _change(self) -> None:
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(reader)
        try:
            await reader
        finally:
            self._waiting.discard(reader)
