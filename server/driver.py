"""Performs what the round machine decides: rows to the learner, parameters to whoever waits for them.

Everything here runs on one event loop, except what is heavy: aggregation, the step and the evaluation run
in one thread of their own, one after the other, so the loop answers at all times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch

from varangian.aggregators import AggregationError
from varangian.protos.codec import FLOAT32, Dtype
from varangian.server.events import (
    Close,
    Committed,
    Duplicate,
    Event,
    Fault,
    Finish,
    Gone,
    Offer,
    Open,
    Phase,
    Push,
    Refusal,
    Reject,
    Seconds,
    Skip,
    Skipped,
    Stop,
    Tick,
    Worker,
)
from varangian.server.headway import Headway
from varangian.server.intake import NOT_FINITE, Overtaken, RowStore, Slot
from varangian.server.learner import Begun, Learner
from varangian.server.record import Evaluate, Evaluation, Observe, RoundRecord, is_due, of_skip, of_step
from varangian.server.round import RoundMachine
from varangian.server.views import Snapshot, Status
from varangian.server.waiting import MONOTONIC, Alarm, Clock, News

__all__ = ["Clock", "Driver", "Overtaken", "Slot", "Snapshot", "Status"]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Driver:
    """One run of a round machine and a learner.

    Args:
        machine: decides; nobody else may move it.
        learner: holds the parameters; nobody else may step it.
        evaluate: parameters to loss and accuracy; runs in the thread.
        evaluate_every: in rounds; the last one is always evaluated.
        observe: called on the loop with the record of each round, in order.
        clock: where time comes from.
        executor: where heavy work runs, one piece at a time; by default a thread that ends with the run.
        threads: torch threads of that thread. The same number gives the same bits.
        rows: how vectors are kept until their round closes.
    """

    def __init__(
        self,
        machine: RoundMachine,
        learner: Learner,
        *,
        evaluate: Evaluate,
        evaluate_every: int,
        observe: Observe,
        clock: Clock = MONOTONIC,
        executor: Executor | None = None,
        threads: int = 1,
        rows: Dtype = FLOAT32,
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._observe = observe
        self._now = clock.now
        self._executor = executor or _one_thread(threads)
        self._owns_executor = executor is None
        self._memory = RowStore(machine.policy.workers, learner.parameters.numel(), rows)
        self._headway = Headway(machine, learner, self._memory, self._in_thread)
        self._slots: dict[Worker, Slot] = {}
        self._refusals = Counter[str]()
        self._work = asyncio.Queue[Close | Skip | Finish]()
        self._alarm = Alarm(clock, self._tick)
        self._news = News(Snapshot.of(learner.payload()), clock)

    async def offer(
        self, worker: Worker, round: int, digest: bytes, dtype: Dtype = FLOAT32
    ) -> Slot | Refusal:
        """Where the worker may put its vector, of numbers of this type; `complete` or `release` it then."""
        if refusal := self._handle(Offer(worker, round, digest, self._now())):
            return refusal
        row = self._memory.row(worker)
        slot = Slot(worker, round, digest, row, dtype, overtaken=self._overtaken, came=self._headway.came)
        self._slots[worker] = slot
        self._headway.opened(slot)
        return slot

    async def complete(self, slot: Slot) -> Refusal | str | None:
        """Count the vector in the slot: None, or why it does not count. A text is the proof of a fault."""
        if not slot.full:
            raise ValueError(f"A slot should be full. Found {slot.columns} numbers of {slot.worker}.")
        if not self._forget(slot):
            return Refusal.UNOFFERED
        worker, round, now = slot.worker, slot.round, self._now()
        reason = None if slot.sound else NOT_FINITE
        if reason is None:
            refusal = self._handle(Push(worker, round, slot.digest, now))
        else:
            refusal = self._handle(Fault(worker, round, reason, now))
        if refusal is not None or reason is not None:
            self._handle(Gone(worker, round, now))
        self._headway.look()
        return refusal or reason

    async def release(self, slot: Slot) -> None:
        """Give the slot up: nobody puts anything there any more, and nothing was counted."""
        if self._forget(slot):
            self._handle(Gone(slot.worker, slot.round, self._now()))
            self._headway.gone(slot)

    async def fault(self, worker: Worker, round: int, reason: str) -> Refusal | None:
        """Report something that no honest worker sends. An open slot is still to be released."""
        return self._handle(Fault(worker, round, reason, self._now()))

    async def snapshot(self, after: int, patience: Seconds) -> Snapshot | None:
        """The parameters of the open round, once that is a later one than `after` or the run is finished.

        None when patience, in seconds, ran out first. A round that is being aggregated is not open.
        """

        def ready(latest: Snapshot) -> bool:
            return latest.finished or (latest.round > after and self._is_open(latest.round))

        return await self._news.when(ready, patience)

    @property
    def round(self) -> int:
        return self._machine.state.round

    def status(self) -> Status:
        return Status.of(self._machine, self._now(), self._refusals)

    async def run(self, stop: asyncio.Event) -> str:
        """Perform rounds until the run is finished or `stop` is set; returns why it ended.

        A round in the making is completed before a stop takes effect. Errors of the learner, of `evaluate`
        and of `observe` end the run and are raised here.
        """
        try:
            while not isinstance(work := await self._next(stop), Finish):
                await (self._commit(work) if isinstance(work, Close) else self._skip(work))
            return work.reason
        except BaseException as error:
            self._handle(Stop(f"the server ended on an error ({type(error).__name__})", self._now()))
            raise
        finally:
            if self._owns_executor:
                self._executor.shutdown(wait=False)

    def _handle(self, event: Event) -> Refusal | None:
        """Move the machine, set in motion what follows, and return its refusal."""
        refusal = None
        for effect in self._machine.handle(event):
            match effect:
                case Reject() | Duplicate():
                    refusal = effect.refusal if isinstance(effect, Reject) else Refusal.DUPLICATE
                    self._refusals[refusal.name] += 1
                    log.debug("%s: %r", refusal.name, event)
                case Close() | Skip() | Finish():
                    self._work.put_nowait(effect)
                case _:
                    pass
            if isinstance(effect, Open | Finish):
                self._publish()
        self._alarm.set(self._machine.wake_at)
        return refusal

    def _publish(self) -> None:
        state = self._machine.state
        finished = state.phase is Phase.FINISHED
        latest = replace(self._news.latest, round=state.round, finished=finished, reason=state.reason)
        self._news.publish(latest)

    def _tick(self) -> None:
        self._handle(Tick(self._now()))

    def _is_open(self, round: int) -> bool:
        return self._machine.state.round == round and self._machine.state.phase is Phase.OPEN

    def _overtaken(self, slot: Slot) -> Refusal | None:
        """Why the vector in the slot would not count any more."""
        if self._slots.get(slot.worker) is not slot:
            return Refusal.UNOFFERED
        if self._is_open(slot.round):
            return None
        return Refusal.FINISHED if self._machine.state.phase is Phase.FINISHED else Refusal.STALE

    def _forget(self, slot: Slot) -> bool:
        """Whether the slot was still open; from now on it is not."""
        if self._slots.get(slot.worker) is not slot:
            return False
        del self._slots[slot.worker]
        return True

    async def _next(self, stop: asyncio.Event) -> Close | Skip | Finish:
        """What to perform next; a stop comes after what is due already."""
        if self._work.empty():
            due, stopped = asyncio.create_task(self._work.get()), asyncio.create_task(stop.wait())
            await asyncio.wait((due, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if due.done():
                return due.result()
            due.cancel()
            self._handle(Stop("stopped on request", self._now()))
        return self._work.get_nowait()

    async def _commit(self, close: Close) -> None:
        log.debug("%s", close.because)
        try:
            begun = await self._headway.claimed()
            record, parameters = await self._in_thread(lambda: self._advance(close, begun))
        except AggregationError as error:
            self._handle(Skipped(close.round, f"round {close.round}: {error}", self._now()))
            return
        self._news.latest = parameters
        self._handle(Committed(close.round, self._now()))
        self._observe(record)

    async def _skip(self, skip: Skip) -> None:
        log.debug("%s", skip.because)
        evaluation, _ = await self._in_thread(lambda: self._evaluation(skip.round))
        self._observe(of_skip(skip, evaluation))

    def _advance(self, close: Close, begun: Begun | None) -> tuple[RoundRecord, Snapshot]:
        """In the thread: the round's record, and the parameters after it.

        The evaluation comes before the next round opens, so that it takes nothing from its deadline.
        """
        rows = self._memory.rows(close.workers)
        step = self._learner.step(close.round, rows, close.faults, begun)
        evaluation, seconds = self._evaluation(close.round)
        seconds["wait"] = close.waited
        record = of_step(close.round, step, missing=close.missing, evaluation=evaluation, seconds=seconds)
        return record, Snapshot.of(self._learner.payload())

    def _evaluation(self, round: int) -> tuple[Evaluation | None, dict[str, Seconds]]:
        if not is_due(round, self._machine.policy.rounds, self._evaluate_every):
            return None, {}
        start = time.perf_counter()
        evaluation = self._evaluate(self._learner.parameters)
        return evaluation, {"evaluate": time.perf_counter() - start}

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _one_thread(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "varangian-learner", torch.set_num_threads, (threads,))
