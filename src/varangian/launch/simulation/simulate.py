"""A run in one process, without sockets: the same server, and workers that hand over their vectors.

Time is virtual. Computing takes none of it, only delays and absences do. So a run ends as soon as this
machine can, and no deadline depends on how fast that is.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch

from varangian.config import RunConfig
from varangian.launch.event_loop import run_to_completion
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import Note, RunError
from varangian.launch.server_run import ServerRun
from varangian.launch.simulation.virtual_clock import VirtualTime
from varangian.launch.simulation.workers import SimulatedWorkers
from varangian.server.observability.record import Observe
from varangian.server.rows.latest_store import NoRoom


def run_in_simulation(
    config: RunConfig, *, observe: Observe, note: Note, folder: Path | None = None
) -> RunResult:
    """Carry a run out in this process.

    Raises:
        RunError: it cannot be started, or the disk is full.
    """
    threads = config.worker.threads

    async def main() -> RunResult:
        server_run = ServerRun.open(config, observe, note, folder)
        with closing(server_run), server_run.stop.on_signals(note):
            time = VirtualTime()
            coordinator = server_run.coordinator(time.clock)
            serving = asyncio.create_task(coordinator.run(server_run.stop.event))
            for sentence in server_run.sentences:
                note(sentence)
            with ThreadPoolExecutor(1, "varangian-workers", torch.set_num_threads, (threads,)) as executor:
                await SimulatedWorkers(server_run, coordinator, time, executor).work()
            return server_run.result(await serving)

    try:
        return run_to_completion(main)
    except NoRoom as error:
        raise RunError(str(error)) from error
