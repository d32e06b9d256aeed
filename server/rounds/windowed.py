"""Windowed rounds (`memory: window`): rows are reduced block by block while they arrive, and forgotten.

`varangian.server.protocol.window` decides whose rows take part; this carries it out, with a few blocks of
columns of each row.
"""

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
from varangian.protos.payloads.encoding import FLOAT32, RowDtype
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
from varangian.server.weak_methods import weakly

InThread: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]

BLOCKS = 8
"""Blocks of each row that are kept: so many that uploads which take turns do not wait for each other."""
LOST = -1
"""In the place of the attempt of a slot that nothing can come of any more."""
PATIENCE: Seconds = 15.0
"""The longest wait for the slowest worker, however long a round may take."""


def window_columns(d: int) -> int:
    """The number of columns of each row of d that are kept at a time."""
    size = block_columns()
    return min(BLOCKS * size, -(-d // size) * size)


@dataclass(frozen=True)
class WindowListener:
    """The interface of the coordinator for windowed rounds."""

    refusal: Callable[[Slot], Refusal | None]
    """The refusal of an upload that cannot count any more, whatever the window says."""
    settle: Callable[[Sequence[Slot]], Refusal | None]
    """Counts the vectors in all of these slots, or says why none of them counts."""
    fail: Callable[[Exception], None]
    """Ends the run with an error."""


@dataclass(frozen=True)
class _Update:
    """An update in the making, of which some blocks of columns may be done."""

    stream: Stream
    workers: tuple[Worker, ...]
    """Workers whose rows it is made of, sorted."""
    attempt: int
    """The attempt at the round that it belongs to."""


class WindowedRounds:
    """Rounds whose rows are never whole in memory.

    It is the `RowStorage` of its rounds: of each row it keeps a few blocks of columns, in a ring.

    Args:
        machine: asked, never moved.
        learner: says how to reduce a block; not touched otherwise.
        in_thread: runs something in the learner's thread.
        clock: where time comes from.
        listener: is told what becomes of the slots.
        dtype: how numbers are kept.
    """

    def __init__(
        self,
        machine: Machine,
        learner: Learner,
        in_thread: InThread,
        clock: Clock,
        listener: WindowListener,
        dtype: RowDtype = FLOAT32,
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._in_thread = in_thread
        self._clock = clock
        self._listener = listener
        self._d, self._block = learner.parameters.numel(), block_columns()
        workers, self._kept = machine.policy.workers, window_columns(self._d)
        self._rows = dict(zip(workers, allocate_rows(len(workers), self._kept, dtype), strict=True))
        self._window = Window(machine.policy, self._d, self._block, BLOCKS, self._patience())
        self._attempts = WeakKeyDictionary[Slot, int]()
        """In which attempt at the round each slot was opened, or `LOST`."""
        self._slots: dict[Worker, Slot] = {}
        self._answers: dict[Slot, Refusal | None] = {}
        self._in_progress: _Update | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters = set[asyncio.Future[None]]()
        self._alarm = Alarm(clock, weakly(self.update))

    @property
    def slot_listener(self) -> SlotListener:
        """The interface of these rounds for slots."""
        return SlotListener(self.refusal, self.progressed, self.wait_for_room)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._rows.values())

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
        if refusal := self._listener.refusal(slot):
            return refusal
        if not slot.finite:
            return None  # only its digest says whether the worker or the connection is to blame
        return None if self._attempts.get(slot) == self._window.attempt else Refusal.RESTARTED

    def progressed(self, slot: Slot) -> None:
        """The slot was opened, more numbers have landed in it, or it was given up."""
        now = self._clock.now()
        if slot.closed:
            if self._lose(slot) == self._window.attempt:
                self._window.lose(slot.worker, now)
            self._window.clear(slot.worker, now)
            if self._slots.get(slot.worker) is slot:
                del self._slots[slot.worker]
            self.update()
        elif slot not in self._attempts:
            self._follow()
            self._slots[slot.worker] = slot
            self._attempts[slot] = self._window.attempt
            self._window.offer(slot.worker, now)
            self.update()
        elif not slot.finite:
            if self._lose(slot) != LOST:
                self._window.fail(slot.worker, now)
                self.update()
        else:
            before = self._window.ready
            self._window.receive(slot.worker, slot.columns)
            if self._window.ready != before:
                self.update()

    async def wait_for_room(self, slot: Slot) -> None:
        """Return when there is room for the next number.

        Raises:
            Overtaken: there will be none.
        """
        while not slot.has_room():
            await self._changed()
            slot.check()

    def withdraw(self, worker: Worker) -> None:
        """Let an upload of this worker count no more; if the members are fixed, the others begin anew."""
        self._follow()
        if (slot := self._slots.pop(worker, None)) is not None:
            self._lose(slot)
            self._window.lose(worker, self._clock.now())
            self._window.clear(worker, self._clock.now())

    async def wait_until_settled(self, slot: Slot) -> Refusal | None:
        """Return when the vector counts, together with all others, or why it does not."""
        self._window.complete(slot.worker)
        self.update()
        while slot not in self._answers:
            if refusal := slot.refusal:
                return refusal
            await self._changed()
        return self._answers.pop(slot)

    def update(self) -> None:
        """Follow the machine and the clock: reduce blocks that are complete, settle a round that is."""
        self._follow()
        window, now = self._window, self._clock.now()
        window.tick(now)
        if window.settled and self._slots:
            self._settle()
        elif self._task is None and window.ready > window.base:
            self._task = asyncio.create_task(self._reduce())
        self._alarm.set(window.wake_at)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def aggregation(self, close: Close) -> Aggregation:
        """The aggregation of the closed round, from blocks that are all reduced by now."""
        if self._task is not None:
            await self._task
        update = self._in_progress

        def finish() -> Aggregate:
            if update is None or update.workers != tuple(sorted(close.workers)):
                raise AggregationError("Columns were forgotten before it was known whose rows count.")
            weights = self._learner.weights_of(close.workers, close.faults)
            return update.stream.finish(len(close.workers), len(close.faults), weights)

        return finish

    def _follow(self) -> None:
        """Tell the window what the machine has done meanwhile."""
        state, window = self._machine.state, self._window
        if state.phase is Phase.OPEN and state.round != window.round:
            window.begin(state.round, self._patience())
            self._slots, self._in_progress = {}, None
        if state.faults.keys() != window.faulty and not window.settled and state.round == window.round:
            window.convict(state.faults, self._clock.now())
            weights = self._learner.weights_of(window.columns, window.faulty)
            if window.fixed and not self._current().stream.holds(
                len(window.columns), len(window.faulty), weights
            ):
                window.restart(frozenset(), self._clock.now())
        aside = state.declined.keys() | state.absent | state.revoked.keys()
        aside |= passed_over(self._machine.policy, state)
        if aside != window.aside and state.round == window.round:
            window.set_aside(aside, self._clock.now())

    def _patience(self) -> Seconds:
        """Seconds to wait for the slowest worker in the current round.

        A deadline that sets itself leaves less room for others to begin anew.
        """
        policy = self._machine.policy
        share = 4 if policy.auto is None else 2
        return min(policy.deadline_of(self._machine.state) / share, PATIENCE)

    def _settle(self) -> None:
        """Have the vectors of all members counted, and answer their uploads."""
        slots = [self._slots[worker] for worker in self._window.columns]
        self._slots = {}
        refusal = self._listener.settle(slots)
        for slot in slots:
            self._lose(slot)
            self._answers[slot] = refusal

    def _lose(self, slot: Slot) -> int:
        """Expect nothing of the slot any more; returns the attempt that it belonged to."""
        attempt, self._attempts[slot] = self._attempts[slot], LOST
        return attempt

    def _current(self) -> _Update:
        """The update of this attempt at the round."""
        window = self._window
        if self._in_progress is None or self._in_progress.attempt != window.attempt:
            workers = tuple(sorted(window.columns))
            stream = self._learner.stream(workers, window.faulty)
            self._in_progress = _Update(stream, workers, window.attempt)
        return self._in_progress

    async def _reduce(self) -> None:
        """Reduce the blocks that all members have sent, in the compute thread."""
        window = self._window
        while window.ready > window.base:
            attempt, start = window.attempt, window.base
            stop = min(start + self._block, self._d)
            update, at = self._current(), start % self._kept
            part = [self._rows[worker][at : at + stop - start] for worker in update.workers]
            try:
                await self._in_thread(functools.partial(update.stream.advance, part, start))
            except Exception as error:
                self._listener.fail(error)
                return
            if window.attempt == attempt:
                window.reduce_to(stop, self._clock.now())
                self.update()
        self._task = None  # after an error it stays, and nothing more is done
        self.update()

    async def _changed(self) -> None:
        """Return after the next `update`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
