"""Pulls of workers: each is answered with the model at once, when its worker is invited, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Event, Left, Ready, Seconds, Worker
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase
from varangian.server.rounds.clock import Clock, LatestValue
from varangian.server.training.parameters import Snapshot


class PendingPull:
    """A pull that waits for its answer."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()

    @property
    def answer(self) -> Snapshot | None:
        """The model; None as long as there is no answer, or if there will be none."""
        return self._answer.result() if self.answered else None

    def set_answer(self, answer: Snapshot | None) -> None:
        """The first answer counts; None says that there will be none."""
        if not self.answered:
            self._answer.set_result(answer)

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or will never be one."""
        return self._answer.done()

    async def wait(self) -> Snapshot | None:
        return await asyncio.shield(self._answer)


@dataclass
class AnsweredPull:
    """A pull while its answer is being sent."""

    snapshot: Snapshot | None
    """The model; None when the worker should ask again."""
    delivered: bool = False
    """Whether all of it has been sent: a call that ends after that has it."""
    have: bytes = b""
    """The digest of the parameters that the worker says it holds; empty if it holds none."""


class Pulls:
    """The pulls of one run.

    By invitation a worker has one pending pull: another one takes its place. A worker whose pull ends
    before the model was sent has left: no round waits for it. Unless places last: then it has left once it
    is absent, and until then it may come back to the same place.

    Args:
        machine: read here, and moved by `handle` alone.
        handle: gives an event to the machine.
        model: the newest parameters, and whether the run is finished.
        clock: where time comes from.
        places_last: whether a worker whose pull breaks keeps its place for as long as it is present.
    """

    def __init__(
        self,
        machine: Machine,
        handle: Callable[[Event], Refusal | None],
        model: LatestValue[Snapshot],
        clock: Clock,
        places_last: bool = False,
    ) -> None:
        self._machine = machine
        self._handle = handle
        self._model = model
        self._clock = clock
        self._places_last = places_last
        self._pending: dict[Worker, PendingPull] = {}
        self._asked: dict[Worker, int] = {}
        """The first round that each pending pull would take, of workers that are to be admitted."""
        self._dismissed: dict[Worker, str] = {}
        """Workers that have left the run, and what they are told of it."""

    @asynccontextmanager
    async def answered(self, worker: Worker, after: int, patience: Seconds) -> AsyncGenerator[AnsweredPull]:
        """The answer to a pull, for as long as it is being sent; without a model after `patience` s."""
        if not self._machine.by_invitation:
            yield AnsweredPull(await self.snapshot(after, patience, worker))
            return
        pending, pull = self.ask(worker, after), AnsweredPull(None)
        try:
            pull.snapshot = await self._wait(pending, patience)
            yield pull
        except BaseException:
            if not pull.delivered and not self._places_last:
                self.leave(pending)
            raise
        finally:
            self.forget(pending)

    async def _wait(self, pending: PendingPull, patience: Seconds) -> Snapshot | None:
        def run_out() -> None:
            # Now, and not when this task goes on: a worker must not be invited that has given up.
            if not pending.answered:
                self.leave(pending)

        timer = self._clock.call_later(patience, run_out)
        try:
            return await pending.wait()
        finally:
            timer.cancel()

    async def snapshot(
        self, after: int, patience: Seconds, worker: Worker | None = None
    ) -> Snapshot | None:
        """The parameters of the open round, once that is later than `after`, or the run is finished.

        None after `patience` seconds. A round that is being aggregated is not open. A worker that is to be
        admitted waits for the first round that it belongs to.
        """

        def ready(latest: Snapshot) -> bool:
            state, members = self._machine.state, self._machine.policy.workers
            is_open = state.phase is Phase.OPEN and state.round == latest.round
            belongs = worker is None or worker in members
            return (
                latest.finished
                or worker in self._dismissed
                or (latest.round > after and is_open and belongs)
            )

        found = await self._model.wait_for(ready, patience)
        return self._farewell(worker) if worker in self._dismissed else found

    def dismiss(self, worker: Worker, reason: str) -> None:
        """Answer the pulls of this worker, of now and later, with the end of the run: it has left."""
        self._dismissed[worker] = reason
        if (pending := self._pending.get(worker)) is not None:
            pending.set_answer(self._farewell(worker))

    def admit(self, worker: Worker) -> None:
        """A worker that had left is to be a member again."""
        self._dismissed.pop(worker, None)

    def welcome(self, workers: Collection[Worker]) -> None:
        """These workers are members from the open round on: those that wait for a model ask for it."""
        for worker in workers:
            if worker in self._pending and worker in self._asked:
                self._handle(Ready(worker, self._asked.pop(worker), self._clock.now()))

    def _farewell(self, worker: Worker | None) -> Snapshot:
        assert worker is not None
        return replace(self._model.latest, finished=True, reason=self._dismissed[worker])

    def over(self, worker: Worker, round: int) -> bool:
        """Whether a vector for the model of this round would be refused; then a newer one is due."""
        if self._machine.by_invitation:
            return self._machine.refusal(worker, round) is not None
        return self._machine.state.round != round

    def ask(self, worker: Worker, after: int) -> PendingPull:
        """Ask for the model of a round later than `after`, without waiting.

        Call `leave` in the end, or `forget` when the answer was taken.
        """
        if (before := self._pending.get(worker)) is not None:
            before.set_answer(None)
        pending = self._pending[worker] = PendingPull(worker)
        if worker in self._dismissed:
            pending.set_answer(self._farewell(worker))
            return pending
        refusal = self._handle(Ready(worker, after + 1, self._clock.now()))
        if refusal is Refusal.FINISHED and self._model.latest.finished:
            pending.set_answer(self._model.latest)
        elif refusal is Refusal.UNKNOWN_WORKER:
            self._asked[worker] = after + 1
        return pending

    def restore(
        self, pending: Collection[Worker], answered: Collection[Worker]
    ) -> dict[Worker, PendingPull]:
        """The pulls of a machine that was restored with its connections: it knows of them.

        Args:
            pending: workers that wait for an answer.
            answered: workers whose answer, the present model, has not been taken.
        """
        self._pending = {worker: PendingPull(worker) for worker in (*pending, *answered)}
        for worker in answered:
            self._pending[worker].set_answer(self._model.latest)
        return dict(self._pending)

    def leave(self, pending: PendingPull) -> None:
        """The worker has gone without the answer, unless it has asked again since."""
        pending.set_answer(None)
        if self._pending.get(pending.worker) is pending:
            del self._pending[pending.worker]
            self._handle(Left(pending.worker, self._clock.now()))

    def forget(self, pending: PendingPull) -> None:
        """The answer was taken: nothing keeps the model in memory for its sake."""
        if self._pending.get(pending.worker) is pending:
            del self._pending[pending.worker]

    def invite(self, worker: Worker, round: int) -> None:
        """Answer the pending pull of this worker."""
        if (pending := self._pending.get(worker)) is not None:
            pending.set_answer(self._model.latest)

    def finish(self) -> None:
        """Answer every pending pull: the run is finished."""
        for pending in self._pending.values():
            pending.set_answer(self._model.latest)
