"""A run in one process, without sockets: the same server, and a crew that hands vectors over by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing

import torch
from torch import Tensor

from varangian.backends import Note
from varangian.backends.result import RunResult
from varangian.backends.session import Session
from varangian.config import RunConfig
from varangian.protos import codec
from varangian.protos.codec import Dtype
from varangian.server.driver import Driver, Slot, Snapshot
from varangian.server.record import Observe
from varangian.server.waiting import Act, Clock, Timer
from varangian.worker.task import Crew

PATIENCE = 3600.0
"""Seconds of a clock that stands still."""


class _Never:
    def cancel(self) -> None:
        pass


def _no_timer(delay: float, act: Act) -> Timer:
    return _Never()


STILL = Clock(lambda: 0.0, _no_timer)
"""Every worker answers every round here, so no deadline may depend on how fast this machine is."""


def simulate(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry a run out in this process.

    Raises:
        RunError: it cannot be started.
    """

    async def main() -> RunResult:
        session = Session.open(config, observe)
        with closing(session.folder), session.stop.on_signals(note):
            driver = session.driver(STILL)
            serving = asyncio.create_task(driver.run(session.stop.event))
            with _one_thread(config.worker.threads) as executor:
                await _work(driver, session.crew, config.wire.dtype, executor)
            return session.result(await serving)

    return asyncio.run(main())


async def _work(driver: Driver, crew: Crew, dtype: Dtype, executor: Executor) -> None:
    """Be all workers, until the run is finished."""
    loop = asyncio.get_running_loop()
    after = -1
    while True:
        snapshot = await driver.snapshot(after, PATIENCE)
        if snapshot is None or snapshot.finished:
            return
        rows = await loop.run_in_executor(executor, _contributions, crew, snapshot)
        for name, row in rows.items():
            slot = await driver.offer(name, snapshot.round, name.encode(), dtype)
            if isinstance(slot, Slot):
                # As on the wire, so that numbers are rounded where real workers round them.
                await slot.put(codec.payload(row, dtype))
                await driver.complete(slot)
        after = snapshot.round


def _contributions(crew: Crew, snapshot: Snapshot) -> Mapping[str, Tensor]:
    """What everyone sends, all of it before anything is handed over, as if they worked at the same time."""
    parameters = torch.frombuffer(bytearray(snapshot.payload), dtype=torch.float32)
    return {name: crew.contribution(name, snapshot.round, parameters) for name in crew.task.workers}


def _one_thread(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "varangian-crew", torch.set_num_threads, (threads,))
