"""Pulls, from the question of a worker to its model: at once, when it is its turn, or not this time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Event, Left, Ready, Seconds, Worker
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase
from varangian.server.rounds.clock import Clock, LatestValue
from varangian.server.training.parameters import Snapshot


class PendingPull:
    """One pull that waits to be answered."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()

    @property
    def answer(self) -> Snapshot | None:
        """None as long as there is none."""
        return self._answer.result() if self.settled else None

    def settle(self, answer: Snapshot | None) -> None:
        """The first answer counts; None says that there will be none."""
        if not self.settled:
            self._answer.set_result(answer)

    @property
    def settled(self) -> bool:
        """Whether there is an answer, or will never be one."""
        return self._answer.done()

    async def wait(self) -> Snapshot | None:
        return await asyncio.shield(self._answer)


@dataclass
class AnsweredPull:
    """One that was answered."""

    snapshot: Snapshot | None
    """The model; None when the worker should ask again."""
    delivered: bool = False
    """Whether the last of it is on its way: who hangs up after that has it."""


class Pulls:
    """Those of one run.

    Where the machine invites, a worker has one pull that waits: another one takes its place. Who gives a
    pull up, or is gone before the model is on its way, has left: nobody waits for it.

    Args:
        machine: asked, never moved.
        handle: moves it.
        news: the model, and that the run is finished.
        clock: where time comes from.
    """

    def __init__(
        self,
        machine: Machine,
        handle: Callable[[Event], Refusal | None],
        news: LatestValue[Snapshot],
        clock: Clock,
    ) -> None:
        self._machine = machine
        self._handle = handle
        self._news = news
        self._clock = clock
        self._tickets: dict[Worker, PendingPull] = {}

    @asynccontextmanager
    async def answered(self, worker: Worker, after: int, patience: Seconds) -> AsyncGenerator[AnsweredPull]:
        """The answer to a pull, for as long as it is being sent; nothing to send once patience ran out."""
        if not self._machine.by_invitation:
            yield AnsweredPull(await self.snapshot(after, patience))
            return
        ticket, pull = self.ask(worker, after), AnsweredPull(None)
        try:
            pull.snapshot = await self._settled(ticket, patience)
            yield pull
        except BaseException:
            if not pull.delivered:
                self.leave(ticket)
            raise
        finally:
            self.forget(ticket)

    async def _settled(self, ticket: PendingPull, patience: Seconds) -> Snapshot | None:
        def run_out() -> None:
            # At once, so that no invitation comes to somebody who has given up.
            if not ticket.settled:
                self.leave(ticket)

        timer = self._clock.call_later(patience, run_out)
        try:
            return await ticket.wait()
        finally:
            timer.cancel()

    async def snapshot(self, after: int, patience: Seconds) -> Snapshot | None:
        """The parameters of the open round, once that is a later one than `after` or the run is finished.

        None when patience, in seconds, ran out first. A round that is being aggregated is not open.
        """

        def ready(latest: Snapshot) -> bool:
            is_open = self._machine.state.phase is Phase.OPEN and self._machine.state.round == latest.round
            return latest.finished or (latest.round > after and is_open)

        return await self._news.when(ready, patience)

    def over(self, worker: Worker, round: int) -> bool:
        """Whether a vector for the model of this round would be refused by now: better to begin anew."""
        if self._machine.by_invitation:
            return self._machine.standing(worker, round) is not None
        return self._machine.state.round != round

    def ask(self, worker: Worker, after: int) -> PendingPull:
        """Ask for the model of a round later than `after`, without waiting.

        In the end say `leave`, or `forget` when the answer was taken.
        """
        if (before := self._tickets.get(worker)) is not None:
            before.settle(None)
        ticket = self._tickets[worker] = PendingPull(worker)
        if self._handle(Ready(worker, after + 1, self._clock.now())) is Refusal.FINISHED:
            ticket.settle(self._news.latest)
        return ticket

    def leave(self, ticket: PendingPull) -> None:
        """Nobody waits for the answer, or has it; unless the worker has come again since."""
        ticket.settle(None)
        if self._tickets.get(ticket.worker) is ticket:
            del self._tickets[ticket.worker]
            self._handle(Left(ticket.worker, self._clock.now()))

    def forget(self, ticket: PendingPull) -> None:
        """The answer was taken: nothing keeps the model in memory for its sake."""
        if self._tickets.get(ticket.worker) is ticket:
            del self._tickets[ticket.worker]

    def invite(self, worker: Worker, round: int) -> None:
        """It is this worker's turn."""
        if (ticket := self._tickets.get(worker)) is not None:
            ticket.settle(self._news.latest)

    def finish(self) -> None:
        """There are no more turns."""
        for ticket in self._tickets.values():
            ticket.settle(self._news.latest)
