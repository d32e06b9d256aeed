"""A run in one process, without sockets: the same server, and workers that hand over their vectors.

Time is virtual. Computing takes none of it, only delays and absences do. So a run ends as soon as this
machine can, and no deadline depends on how fast that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from varangian.config import RunConfig
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.event_loop import run_to_completion
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import Note, RunError
from varangian.launch.server_run import ServerRun
from varangian.launch.simulation.short_work import ShortWork, computes_as_a_new_thread, torch_threads
from varangian.launch.simulation.virtual_clock import VirtualTime
from varangian.launch.simulation.workers import SimulatedWorkers
from varangian.server.observability.record import Observe
from varangian.server.rows.latest_store import NoRoom
from varangian.structured_logs import enter


@contextmanager
def executors(config: RunConfig) -> Generator[tuple[Executor | None, Executor]]:
    """Where the server computes, None for a thread of its own, and where the workers do.

    Both on the event loop while that is short, if that gives the same bits.
    """
    threads = config.worker.threads
    with ThreadPoolExecutor(1, "varangian-workers", torch.set_num_threads, (threads,)) as thread:
        alone = threads == config.server.threads == 1 and config.worker.device == "cpu"
        if not (alone and computes_as_a_new_thread()):
            yield None, thread
            return
        short = ShortWork(thread)
        with torch_threads(1):
            yield short, short


def _simulation(resume: Resumed) -> Mapping[str, Any]:
    """The workers and the clock in a checkpoint.

    Raises:
        RunError: it is that of a real server.
    """
    assert resume.state is not None
    if (found := resume.state.get("simulation")) is None:
        raise RunError(
            f"the checkpoint of round {resume.round} in {resume.folder} is that of a real server, whose "
            "workers have their own histories. Go on with backend=processes"
        )
    known: Mapping[str, Any] = found
    return known


def run_in_simulation(
    config: RunConfig,
    *,
    observe: Observe,
    note: Note,
    folder: Path | None = None,
    resume: Resumed | None = None,
) -> RunResult:
    """Carry a run out in this process, or go on with one.

    Raises:
        RunError: it cannot be started, or the disk is full.
    """

    async def main() -> RunResult:
        server_run = ServerRun.open(config, observe, note, folder, resume)
        enter(server_run.folder.path.name).round = server_run.machine.state.round
        with server_run.stop.on_signals(note), closing(server_run):
            for sentence in server_run.sentences:
                note(sentence)
            time, ending = VirtualTime(), asyncio.Event()
            if resume is not None and resume.state is not None:
                time.restore(_simulation(resume)["time"])
            with executors(config) as (server, workers):
                coordinator = server_run.coordinator(time.clock, server)
                server_run.trackers.begin()
                serving = asyncio.create_task(coordinator.run(ending))
                await SimulatedWorkers(server_run, coordinator, time, workers).work()
                ending.set()
                reason = await serving
            return server_run.result(reason)

    try:
        return run_to_completion(main)
    except NoRoom as error:
        raise RunError(str(error)) from error
