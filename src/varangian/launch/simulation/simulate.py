"""A run in one process, without sockets: the same server, and a crew that hands vectors over by hand.

Time is virtual. Computing takes none of it; only being late does, and waiting for those who are away. So a
run ends as soon as this machine can, and no deadline depends on how fast that is.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from varangian.config import RunConfig
from varangian.launch.event_loop import run_to_completion
from varangian.launch.result import Note, RunError, RunResult
from varangian.launch.server_run import ServerRun
from varangian.launch.simulation.invited import InvitedWorkers
from varangian.launch.simulation.transport import PATIENCE, compute_answers, decline, hand_over, stalled
from varangian.launch.simulation.virtual_clock import VirtualTime
from varangian.server.observability.record import Observe
from varangian.server.protocol.state import Phase
from varangian.server.rounds.coordinator import Coordinator, Snapshot
from varangian.server.rows.latest_store import NoRoom
from varangian.worker.transport.results import Declined


def run_in_simulation(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry a run out in this process.

    Raises:
        RunError: it cannot be started, or the disk is full.
    """

    async def main() -> RunResult:
        session = ServerRun.open(config, observe, note)
        with closing(session), session.stop.on_signals(note):
            time = VirtualTime()
            coordinator = session.coordinator(time.clock)
            serving = asyncio.create_task(coordinator.run(session.stop.event))
            for sentence in session.sentences:
                note(sentence)
            kind = InvitedWorkers if session.machine.by_invitation else _Workers
            with _one_thread(config.worker.threads) as executor:
                await kind(session, coordinator, time, executor).work()
            return session.result(await serving)

    try:
        return run_to_completion(main)
    except NoRoom as error:
        raise RunError(str(error)) from error


@dataclass(order=True)
class _Push:
    """A vector on its way."""

    at: float
    worker: str
    round: int = field(compare=False)
    row: Tensor = field(compare=False)


class _Workers:
    """All workers of a run: each pulls, computes, and pushes when its delay is over."""

    def __init__(
        self, session: ServerRun, coordinator: Coordinator, time: VirtualTime, executor: Executor
    ) -> None:
        self._session = session
        self._coordinator = coordinator
        self._time = time
        self._executor = executor
        self._table = session.worker_compute.task.timetable
        self._pushes: list[_Push] = []
        """By time, then by name; a worker that is in here is busy."""
        self._served = dict.fromkeys(session.worker_compute.task.workers, -1)
        """The last round for which each has computed."""
        self._told = set[str]()
        """Why rounds were declined, as far as it was said."""

    async def work(self) -> None:
        """Until the run is finished."""
        free: Iterable[str] = self._served
        round = -1
        while True:
            snapshot = await self._coordinator.snapshot(-1, PATIENCE)
            if snapshot is None or snapshot.finished:
                return
            if snapshot.round != round:
                round = snapshot.round
                busy = {push.worker for push in self._pushes}
                free = [worker for worker in self._served if worker not in busy]
            await self._pull(snapshot, free)
            if not self._opened(round):
                continue  # so many declined that it was given up before any time had passed
            free = await self._happen(round)
            while self._unchanged(round, free):
                free = await self._happen(round)

    def _unchanged(self, round: int, free: Iterable[str]) -> bool:
        """Whether the round is still open, and nobody has become free who could begin it."""
        return self._opened(round) and all(self._served[worker] == round for worker in free)

    def _opened(self, round: int) -> bool:
        """Whether the round is still open."""
        state = self._session.machine.state
        return state.round == round and state.phase is Phase.OPEN

    async def _pull(self, snapshot: Snapshot, free: Iterable[str]) -> None:
        """Those who are free and take part in the round begin it.

        All compute before anything is handed over, as if they worked at the same time.
        """
        round = snapshot.round
        workers = [w for w in free if self._served[w] < round and self._table.available(w, round)]
        if not workers:
            return
        rows = await compute_answers(self._session.worker_compute, snapshot, workers, self._executor)
        for worker, row in rows.items():
            assert row is not None
            self._served[worker] = round
            if isinstance(row, Declined):
                await decline(self._coordinator, worker, round, row, self._told)
                continue
            push = _Push(self._time.now + self._table.delay(worker, round), worker, round, row)
            heapq.heappush(self._pushes, push)

    async def _happen(self, round: int) -> tuple[str, ...]:
        """Let time pass until the next push or deadline; returns who is free after it."""
        ring, push = self._time.next_at, self._pushes[0] if self._pushes else None
        if push is not None and (ring is None or push.at < ring):
            self._time.advance(push.at)
            heapq.heappop(self._pushes)
            await hand_over(self._session, self._coordinator, push.worker, push.round, push.row)
            return (push.worker,)
        if ring is not None:
            self._time.advance(ring)
        else:
            stalled(self._session, round)
        await asyncio.sleep(0)  # the driver may have something to do
        return ()


def _one_thread(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "varangian-crew", torch.set_num_threads, (threads,))
