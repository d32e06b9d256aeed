"""A run in one process, without sockets: the same server, and a crew that hands vectors over by hand.

Time is virtual. Computing takes none of it; only being late does, and waiting for those who are away. So a
run ends as soon as this machine can, and no deadline depends on how fast that is.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from varangian.backends import Note
from varangian.backends.result import RunResult
from varangian.backends.session import Session
from varangian.backends.virtual import VirtualTime
from varangian.config import RunConfig
from varangian.protos import codec
from varangian.server.driver import Driver, Slot, Snapshot
from varangian.server.record import Observe
from varangian.worker.task import Crew

PATIENCE = 3600.0
"""Seconds of a clock that stands still meanwhile."""
STALLED = (
    "round {round} would wait for ever: nobody is on the way who could complete its quorum of {quorum}. "
    "Lower server.quorum, or set server.shortfall=skip"
)


def simulate(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry a run out in this process.

    Raises:
        RunError: it cannot be started.
    """

    async def main() -> RunResult:
        session = Session.open(config, observe)
        with closing(session.folder), session.stop.on_signals(note):
            time = VirtualTime()
            driver = session.driver(time.clock)
            serving = asyncio.create_task(driver.run(session.stop.event))
            with _one_thread(config.worker.threads) as executor:
                await _Workers(session, driver, time, executor).work()
            return session.result(await serving)

    return asyncio.run(main())


@dataclass(order=True)
class _Push:
    """A vector on its way."""

    at: float
    worker: str
    round: int = field(compare=False)
    row: Tensor = field(compare=False)


class _Workers:
    """All workers of a run: each pulls, computes, and pushes when its delay is over."""

    def __init__(self, session: Session, driver: Driver, time: VirtualTime, executor: Executor) -> None:
        self._session = session
        self._driver = driver
        self._time = time
        self._executor = executor
        self._table = session.crew.task.timetable
        self._pushes: list[_Push] = []
        """By time, then by name; a worker that is in here is busy."""
        self._served = dict.fromkeys(session.crew.task.workers, -1)
        """The last round for which each has computed."""

    async def work(self) -> None:
        """Until the run is finished."""
        free: Iterable[str] = self._served
        round = -1
        while True:
            snapshot = await self._driver.snapshot(-1, PATIENCE)
            if snapshot is None or snapshot.finished:
                return
            if snapshot.round != round:
                round = snapshot.round
                busy = {push.worker for push in self._pushes}
                free = [worker for worker in self._served if worker not in busy]
            await self._pull(snapshot, free)
            free = await self._happen(round)

    async def _pull(self, snapshot: Snapshot, free: Iterable[str]) -> None:
        """Those who are free and take part in the round begin it.

        All compute before anything is handed over, as if they worked at the same time.
        """
        round = snapshot.round
        workers = [w for w in free if self._served[w] < round and self._table.available(w, round)]
        if not workers:
            return
        loop = asyncio.get_running_loop()
        crew = self._session.crew
        rows = await loop.run_in_executor(self._executor, _contributions, crew, snapshot, workers)
        for worker, row in rows.items():
            self._served[worker] = round
            push = _Push(self._time.now + self._table.delay(worker, round), worker, round, row)
            heapq.heappush(self._pushes, push)

    async def _happen(self, round: int) -> tuple[str, ...]:
        """Let time pass until the next push or deadline; returns who is free after it."""
        ring, push = self._time.next_at, self._pushes[0] if self._pushes else None
        if push is not None and (ring is None or push.at < ring):
            self._time.advance(push.at)
            heapq.heappop(self._pushes)
            await self._push(push)
            return (push.worker,)
        if ring is not None:
            self._time.advance(ring)
        else:
            quorum = self._session.machine.policy.quorum
            self._session.stop.because(STALLED.format(round=round, quorum=quorum))
        await asyncio.sleep(0)  # the driver may have something to do
        return ()

    async def _push(self, push: _Push) -> None:
        dtype = self._session.config.wire.dtype
        slot = await self._driver.offer(push.worker, push.round, push.worker.encode(), dtype)
        if isinstance(slot, Slot):
            # As on the wire, so that numbers are rounded where real workers round them.
            await slot.put(codec.payload(push.row, dtype))
            await self._driver.complete(slot)


def _contributions(crew: Crew, snapshot: Snapshot, workers: Iterable[str]) -> Mapping[str, Tensor]:
    parameters = torch.frombuffer(bytearray(snapshot.payload), dtype=torch.float32)
    return {worker: crew.contribution(worker, snapshot.round, parameters) for worker in workers}


def _one_thread(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "varangian-crew", torch.set_num_threads, (threads,))
