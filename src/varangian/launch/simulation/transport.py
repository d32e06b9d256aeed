"""How models and vectors get from one end to the other in a simulation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor

import torch
from torch import Tensor

from varangian.launch.server_run import ServerRun
from varangian.protos.encoding import encode_vector
from varangian.server.rounds.coordinator import Coordinator, Slot
from varangian.server.training.parameters import Snapshot
from varangian.worker.training.task import WorkerCompute
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)

PATIENCE = 3600.0
"""Seconds of a clock that stands still meanwhile."""
STALLED = (
    "round {round} would wait for ever: nobody is on the way who could complete its quorum of {quorum}. "
    "Lower server.quorum, or set server.shortfall=skip"
)


async def compute_answers(
    worker_compute: WorkerCompute, model: Snapshot, workers: Iterable[str], executor: Executor
) -> Mapping[str, Tensor | Declined | None]:
    """The vectors that these workers compute for a model; None of one that takes no part."""

    def computed() -> Mapping[str, Tensor | Declined | None]:
        parameters = torch.frombuffer(bytearray(model.payload), dtype=torch.float32)
        return {worker: _answer(worker_compute, worker, model.round, parameters) for worker in workers}

    return await asyncio.get_running_loop().run_in_executor(executor, computed)


def _answer(
    worker_compute: WorkerCompute, worker: str, round: int, parameters: Tensor
) -> Tensor | Declined | None:
    try:
        return worker_compute.answer(worker, round, parameters)
    except Declined as declined:
        return declined


async def decline(
    coordinator: Coordinator, worker: str, round: int, declined: Declined, told: set[str]
) -> None:
    """Let the server know that nothing comes; each reason is a warning once."""
    if declined.reason not in told:
        told.add(declined.reason)
        log.warning("%s sends nothing in round %d: %s", worker, round, declined.reason)
    await coordinator.decline(worker, round, declined.reason)


async def hand_over(
    session: ServerRun, coordinator: Coordinator, worker: str, round: int, row: Tensor
) -> None:
    """Push a vector as on the wire, so that numbers are rounded where real workers round them."""
    dtype = session.config.wire.dtype
    # Nothing comes twice here, so a name will do for a digest.
    slot = await coordinator.offer(worker, round, f"{worker}/{round}".encode(), dtype)
    if isinstance(slot, Slot):
        await slot.put(encode_vector(row, dtype))
        if await coordinator.complete(slot) is None:
            session.worker_compute.counted(worker, round)


def stalled(session: ServerRun, round: int) -> None:
    """Nothing can happen any more."""
    session.stop.because(STALLED.format(round=round, quorum=session.machine.policy.quorum))
