"""How models and vectors get from one end to the other in a simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor

import torch
from torch import Tensor

from varangian.backends.session import Session
from varangian.protos import codec
from varangian.server.driver import Driver, Slot
from varangian.server.views import Snapshot
from varangian.worker.task import Crew

PATIENCE = 3600.0
"""Seconds of a clock that stands still meanwhile."""
STALLED = (
    "round {round} would wait for ever: nobody is on the way who could complete its quorum of {quorum}. "
    "Lower server.quorum, or set server.shortfall=skip"
)


async def answers(
    crew: Crew, model: Snapshot, workers: Iterable[str], executor: Executor
) -> Mapping[str, Tensor | None]:
    """What these workers make of a model; None of one that takes no part."""

    def computed() -> Mapping[str, Tensor | None]:
        parameters = torch.frombuffer(bytearray(model.payload), dtype=torch.float32)
        return {worker: crew.answer(worker, model.round, parameters) for worker in workers}

    return await asyncio.get_running_loop().run_in_executor(executor, computed)


async def hand_over(session: Session, driver: Driver, worker: str, round: int, row: Tensor) -> None:
    """Push a vector as on the wire, so that numbers are rounded where real workers round them."""
    dtype = session.config.wire.dtype
    # Nothing comes twice here, so a name will do for a digest.
    slot = await driver.offer(worker, round, f"{worker}/{round}".encode(), dtype)
    if isinstance(slot, Slot):
        await slot.put(codec.payload(row, dtype))
        if await driver.complete(slot) is None:
            session.crew.counted(worker, round)


def stalled(session: Session, round: int) -> None:
    """Nothing can happen any more."""
    session.stop.because(STALLED.format(round=round, quorum=session.machine.policy.quorum))
