"""Coordinator of a run: carries out what the protocol decides. `_round` is one round from top to bottom.

Everything here runs on one event loop, except for aggregation, step and evaluation, which run in the
compute thread: so the loop answers at all times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeAlias

from varangian.aggregators import AggregationError
from varangian.protos.encoding import FLOAT32, Dtype
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape
from varangian.server.observability.record import (
    Evaluate,
    Evaluation,
    Observe,
    record_of_skip,
    record_of_step,
)
from varangian.server.observability.status import Status
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Decline,
    Duplicate,
    Event,
    Fault,
    Finish,
    Forget,
    Gone,
    Invite,
    Offer,
    Open,
    Present,
    Push,
    Reject,
    Seconds,
    Settled,
    Skip,
    Skipped,
    Stop,
    Tick,
    Withdraw,
    Worker,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase
from varangian.server.rounds.clock import MONOTONIC, Alarm, Clock, LatestValue
from varangian.server.rounds.executor import ComputeThread
from varangian.server.rounds.pulls import Pulls
from varangian.server.rounds.windowed import WindowedRounds, WindowListener
from varangian.server.rows.slot import NOT_FINITE, Overtaken, Slot, SlotListener
from varangian.server.rows.source import Pushed, RowSource
from varangian.server.rows.storage import LentRows, RowStorage
from varangian.server.training.learner import Learner
from varangian.server.training.parameters import Snapshot

__all__ = ["Clock", "Coordinator", "Overtaken", "Slot", "Snapshot", "Status"]

log = logging.getLogger(__name__)

REASON = 200
"""Characters of what a worker gives as its reason."""
Task: TypeAlias = Close | Skip | Forget | Finish | Exception
"""An effect that is carried out in the order in which the machine decided it."""


def evaluation_is_due(round: int, rounds: int, every: int) -> bool:
    """Whether held-out data is looked at after this round: every so often, and after the last."""
    return (round + 1) % every == 0 or round + 1 == rounds


class Coordinator:
    """Coordinator of one run: the machine decides, the learner computes, and nobody else may touch either.

    Args:
        machine: the protocol of the run.
        learner: the parameters and the rule.
        evaluate: parameters to loss and accuracy; runs in the compute thread.
        evaluate_every: in rounds; the last one is always evaluated.
        observe: called on the loop with the record of each round, in order.
        clock: where time comes from.
        executor: as of `ComputeThread`.
        threads: as of `ComputeThread`.
        rows: type of the numbers of vectors that are kept until their round closes.
        window: keep only a few blocks of columns of each vector, for rules that see no column twice; not
            for runs by invitation.
        row_source: makes the rows that the rule sees from the vectors that were pushed; by default they
            are the same.
        row_slots: how many vectors there can be at once; by default one of each worker.
    """

    def __init__(
        self,
        machine: Machine,
        learner: Learner,
        *,
        evaluate: Evaluate,
        evaluate_every: int,
        observe: Observe,
        clock: Clock = MONOTONIC,
        executor: Executor | None = None,
        threads: int = 1,
        rows: Dtype = FLOAT32,
        window: bool = False,
        row_source: RowSource | None = None,
        row_slots: int | None = None,
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._observe = observe
        self._now = clock.now
        self._evaluate, self._evaluate_every = evaluate, evaluate_every
        self._row_source = row_source or Pushed()
        self._compute = ComputeThread(executor, threads)
        self._d = learner.parameters.numel()
        self._windowed: WindowedRounds | None = None
        if window:
            listener = WindowListener(self._refusal, self._settle, self._fail)
            self._windowed = WindowedRounds(machine, learner, self._compute.run, clock, listener, rows)
        count = row_slots or len(machine.policy.workers)
        self._storage: RowStorage = self._windowed or LentRows(count, self._d, rows, self._needed)
        self._listener = self._windowed.slot_listener if self._windowed else SlotListener(self._refusal)
        self._slots: dict[Worker, Slot] = {}
        self._given = -1
        """The last round whose rows were given to the rule, whatever came of it."""
        self._tasks = asyncio.Queue[Task]()
        self._alarm = Alarm(clock, self._tick)
        self._model = LatestValue(Snapshot.of(learner.payload()), clock)
        self.pulls = Pulls(machine, self._handle, self._model, clock)

    async def offer(
        self, worker: Worker, round: int, digest: bytes, dtype: Dtype = FLOAT32
    ) -> Slot | Refusal:
        """Begin an upload: a slot for the vector of the worker. `complete` or `release` it in the end."""
        if refusal := self._storage.lend(worker, round):
            return refusal
        if refusal := self._handle(Offer(worker, round, digest, self._now())):
            return refusal
        if before := self._slots.get(worker):
            before.close()
        slot = Slot(worker, round, digest, self._d, dtype, self._storage, self._listener)
        self._slots[worker] = slot
        slot.report_progress()
        return slot

    async def complete(self, slot: Slot) -> Refusal | str | None:
        """Count the vector in the slot: None, or why it does not count; a text if it proves a fault."""
        if not slot.full:
            raise ValueError(f"A slot should be full. Found {slot.columns} numbers of {slot.worker}.")
        if self._windowed is not None:
            # All bytes have arrived: the vector counts also if the caller is cancelled now.
            return await asyncio.shield(self._complete_windowed(slot, self._windowed))
        if not self._close_slot(slot):
            return Refusal.UNOFFERED
        worker, round, now = slot.worker, slot.round, self._now()
        reason = None if slot.finite else NOT_FINITE
        if reason is None:
            refusal = self._handle(Push(worker, round, slot.digest, now))
        else:
            refusal = self._handle(Fault(worker, round, reason, now))
        if refusal is not None or reason is not None:
            self._handle(Gone(worker, round, now))
        return refusal or reason

    async def _complete_windowed(self, slot: Slot, windowed: WindowedRounds) -> Refusal | str | None:
        """As `complete`: a vector in a window counts with those of all members, or not at all."""
        if not slot.finite:
            self._handle(Fault(slot.worker, slot.round, NOT_FINITE, self._now()))
            await self.release(slot)
            return NOT_FINITE
        refusal = self._refusal(slot)
        if refusal is None:
            refusal = await windowed.wait_until_settled(slot)
        if refusal is not None:
            await self.release(slot)
        return refusal

    async def release(self, slot: Slot) -> None:
        """End an upload whose vector does not count."""
        if self._close_slot(slot):
            self._handle(Gone(slot.worker, slot.round, self._now()))
            slot.report_progress()

    async def decline(self, worker: Worker, round: int, reason: str) -> Refusal | None:
        """The worker has nothing to send in this round."""
        return self._handle(Decline(worker, round, escape(reason, REASON), self._now()))

    def absent(self, worker: Worker) -> None:
        """Report that no process of this worker is connected any more."""
        self._handle(Absent(worker, self._now()))

    def present(self, worker: Worker) -> None:
        """A process of this worker is connected again."""
        self._handle(Present(worker, self._now()))

    def withdraw(self, worker: Worker, reason: str) -> None:
        """The certificate of this worker was revoked: nothing of it counts that is not used yet.

        That is its vector in the open round, an upload of it, and what is kept of it for later rounds.
        """
        self._handle(Withdraw(worker, reason, self._now()))

    async def snapshot(self, after: int, patience: Seconds) -> Snapshot | None:
        """As `Pulls.snapshot`."""
        return await self.pulls.snapshot(after, patience)

    @property
    def round(self) -> int:
        return self._machine.state.round

    @property
    def rounds(self) -> int:
        """The number of rounds of the run if it is not stopped."""
        return self._machine.policy.rounds

    def status(self) -> Status:
        return Status.of(self._machine, self._now())

    async def run(self, stop: asyncio.Event) -> str:
        """Carry rounds out until the run is finished or `stop` is set; returns why it ended.

        A round that is being aggregated is completed before a stop takes effect. Errors of the learner, of
        `evaluate` and of `observe` end the run and are raised here.
        """
        try:
            while (reason := await self._round(stop)) is None:
                pass
            return reason
        except BaseException as error:
            self._handle(Stop(f"the server ended on an error ({type(error).__name__})", self._now()))
            raise
        finally:
            self._compute.close()

    async def _round(self, stop: asyncio.Event) -> str | None:
        """One round, from its invitations to its record; returns why the run has ended, if it has."""
        # Select, receive, close: the machine does while this waits, event by event (`_handle`) of pulls,
        # uploads and time.
        ended = await self._ended(stop)
        if isinstance(ended, Finish):
            return ended.reason
        log.debug("%s", ended.because)
        run, source = self._compute.run, self._row_source
        if isinstance(ended, Skip):
            new = source.remembers and self._given != ended.round
            await run(source.skip, ended, self._storage.rows(ended.workers) if new else {})
            self._storage.release(ended.workers)
            evaluation, _ = await self._evaluated(ended.round)
            self._observe(record_of_skip(ended, evaluation))
            return None
        try:
            # Aggregate and step. In a window the update was aggregated while its rows came.
            windowed = await self._windowed.aggregation(ended) if self._windowed else None
            self._given = ended.round
            inputs = await run(source.step_input, ended, self._storage.rows(ended.workers))
            step = await run(
                self._learner.step,
                ended.round,
                inputs.rows,
                ended.faults,
                mix=inputs.mix,
                measure=inputs.measure,
                aggregation=inputs.aggregation or windowed,
                fresh=inputs.fresh,
            )
        except AggregationError as error:
            self._handle(Skipped(ended.round, f"round {ended.round}: {error}", self._now()))
            return None  # the machine has decided to skip it, which comes next
        # Evaluate, before the next round opens: so it takes nothing from the deadline of that round.
        evaluation, seconds = await self._evaluated(ended.round)
        record = record_of_step(ended, step, inputs.ages, evaluation, seconds)
        # Commit: the next round opens with these parameters.
        self._model.latest = await run(Snapshot.of, self._learner.payload())
        self._handle(Committed(ended.round, self._now()))
        self._observe(record)
        return None

    async def _ended(self, stop: asyncio.Event) -> Close | Skip | Finish:
        """The end of the round that is being received."""
        while True:
            match task := await self._next(stop):
                case Forget(worker):
                    await self._compute.run(self._row_source.forget, worker)
                case Exception():
                    raise task
                case _:
                    return task

    async def _next(self, stop: asyncio.Event) -> Task:
        """The next effect to carry out; a stop comes after what is due already."""
        if self._tasks.empty():
            due, stopped = asyncio.create_task(self._tasks.get()), asyncio.create_task(stop.wait())
            await asyncio.wait((due, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if due.done():
                return due.result()
            due.cancel()
            self._handle(Stop("stopped on request", self._now()))
        return self._tasks.get_nowait()

    async def _evaluated(self, round: int) -> tuple[Evaluation | None, dict[str, Seconds]]:
        """The evaluation after this round, if one is due, and the seconds that it took."""
        if not evaluation_is_due(round, self.rounds, self._evaluate_every):
            return None, {}
        start = time.perf_counter()
        evaluation = await self._compute.run(self._evaluate, self._learner.parameters)
        return evaluation, {"evaluate": time.perf_counter() - start}

    def _handle(self, event: Event) -> Refusal | None:
        """Give an event to the machine, start what follows, and return why it was refused, if it was."""
        refusal = None
        for effect in self._machine.handle(event):
            match effect:
                case Reject() | Duplicate():
                    refusal = effect.refusal if isinstance(effect, Reject) else Refusal.DUPLICATE
                    log.debug("%s: %r", refusal.name, event)
                case Close() | Skip() | Finish():
                    self._tasks.put_nowait(effect)
                    if isinstance(effect, Skip) and self._row_source.remembers:
                        self._storage.hold(effect.workers)
                case Forget(worker):
                    if self._windowed is not None:
                        self._windowed.withdraw(worker)
                    self._tasks.put_nowait(effect)
                case Invite(worker, round):
                    self.pulls.invite(worker, round)
                case _:
                    pass
            if isinstance(effect, Open | Finish):
                self._publish()
        self._alarm.set(self._machine.wake_at)
        if self._windowed is not None:
            self._windowed.update()
        return refusal

    def _publish(self) -> None:
        """Tell those who wait for a model that another round is open, or that the run is finished."""
        state = self._machine.state
        finished = state.phase is Phase.FINISHED
        latest = replace(self._model.latest, round=state.round, finished=finished, reason=state.reason)
        self._model.publish(latest)
        if finished:
            self.pulls.finish()

    def _tick(self) -> None:
        self._handle(Tick(self._now()))

    def _refusal(self, slot: Slot) -> Refusal | None:
        """Why the vector in the slot would not count any more, if so."""
        if self._slots.get(slot.worker) is not slot:
            return Refusal.UNOFFERED
        return self._machine.refusal(slot.worker, slot.round)

    def _needed(self, worker: Worker) -> bool:
        """Whether the row of this worker is being written to, or holds a vector that counts."""
        return worker in self._slots or worker in self._machine.state.pushed

    def _close_slot(self, slot: Slot) -> bool:
        """Close the slot; False if it was closed before."""
        if self._slots.get(slot.worker) is not slot:
            return False
        del self._slots[slot.worker]
        slot.close()
        return True

    def _settle(self, slots: Sequence[Slot]) -> Refusal | None:
        """Count the vectors of all members of a window at once."""
        digests = {slot.worker: slot.digest for slot in slots if self._close_slot(slot)}
        return self._handle(Settled(slots[0].round, digests, self._now()))

    def _fail(self, error: Exception) -> None:
        """End the run with this error."""
        self._tasks.put_nowait(error)
