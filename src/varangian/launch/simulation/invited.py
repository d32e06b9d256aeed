"""The workers of a simulation in which a worker has to be invited before it computes.

Each asks for a model as soon as it has handed over a vector; what it was given when its turn came is what
it computes with, and its vector is there once its delay is over. Events at the same moment happen in the
order in which their workers were invited, so that nobody is passed over for its name: the same settings
give the same run, bit for bit.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from varangian.launch.server_run import ServerRun
from varangian.launch.simulation.transport import PATIENCE, compute_answers, decline, hand_over, stalled
from varangian.launch.simulation.virtual_clock import VirtualTime
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rounds.pulls import PendingPull
from varangian.server.training.parameters import Snapshot
from varangian.worker.transport.results import Declined


@dataclass(order=True)
class _Push:
    """A vector on its way."""

    at: float
    turn: int
    worker: str = field(compare=False)
    round: int = field(compare=False)
    row: Tensor = field(compare=False)


class InvitedWorkers:
    """All workers of a run."""

    def __init__(
        self, session: ServerRun, coordinator: Coordinator, time: VirtualTime, executor: Executor
    ) -> None:
        self._session = session
        self._coordinator = coordinator
        self._time = time
        self._executor = executor
        self._task = session.worker_compute.task
        self._turns = count()
        self._pushes: list[_Push] = []
        self._tickets: dict[str, PendingPull] = {}
        """Who waits for an invitation."""
        self._told = set[str]()
        """Why rounds were declined, as far as it was said."""

    async def work(self) -> None:
        """Until the run is finished."""
        for worker in self._task.workers:
            self._ask(worker, served=-1)
        while (
            latest := await self._coordinator.snapshot(-1, PATIENCE)
        ) is not None and not latest.finished:
            if not await self._begin():
                await self._happen(latest.round)

    def _ask(self, worker: str, served: int) -> None:
        task, turn = self._task, served + 1
        turn = turn if task.listens(worker) else task.timetable.turn(worker, turn)
        self._tickets[worker] = self._coordinator.pulls.ask(worker, turn - 1)

    async def _begin(self) -> bool:
        """Let those compute who were invited; whether there were any.

        All compute before anything is handed over, as if they worked at the same time.
        """
        tickets = self._tickets.items()
        given = {worker: model for worker, ticket in tickets if (model := ticket.answer) is not None}
        for model in {model.round: model for model in given.values()}.values():
            await self._compute(model, [w for w, found in given.items() if found.round == model.round])
        return bool(given)

    async def _compute(self, model: Snapshot, workers: Iterable[str]) -> None:
        rows = await compute_answers(self._session.worker_compute, model, workers, self._executor)
        for worker, row in sorted(rows.items()):
            self._coordinator.pulls.forget(self._tickets.pop(worker))
            if isinstance(row, Declined):
                await decline(self._coordinator, worker, model.round, row, self._told)
            if row is None or isinstance(row, Declined):
                self._ask(worker, model.round)
                continue
            at = self._time.now + self._task.timetable.delay(worker, model.round)
            heapq.heappush(self._pushes, _Push(at, next(self._turns), worker, model.round, row))

    async def _happen(self, round: int) -> None:
        """Let time pass until the next push, or until the server does something by itself."""
        ring, push = self._time.next_at, self._pushes[0] if self._pushes else None
        if push is not None and (ring is None or push.at < ring):
            self._time.advance(push.at)
            heapq.heappop(self._pushes)
            await hand_over(self._session, self._coordinator, push.worker, push.round, push.row)
            self._ask(push.worker, push.round)
        elif ring is not None:
            self._time.advance(ring)
        else:
            stalled(self._session, round)
        await asyncio.sleep(0)  # the driver may have something to do
