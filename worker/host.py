"""Several workers in one process: a connection and a loop for each, one model for all."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from varangian.worker.client import Client, ClientError
from varangian.worker.loop import work
from varangian.worker.task import Crew, Task

log = logging.getLogger(__name__)

FINISHED = 0
FAILED = 1
SIGNALLED = 128
"""Plus the number of the signal, as shells have it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def host(server: str, names: Sequence[str], tokens: Mapping[str, str], task: Task, threads: int = 1) -> int:
    """Be these workers until the run is finished; returns the exit code of the process.

    A worker that the server refuses ends alone. What it was is in the log, in one line. After a signal this
    returns as soon as the computation at hand is done. A second computation never runs beside it.

    Args:
        server: `host:port`.
        names: which workers of the task to be.
        tokens: worker names to what the server made for them.
        task: what the workers of the run do.
        threads: of torch; the same number gives the same bits.
    """
    torch.set_num_threads(threads)
    try:
        crew = Crew(task)
    except ValueError as error:
        log.error("%s", error)
        return FAILED
    with ThreadPoolExecutor(1, "varangian-crew", torch.set_num_threads, (threads,)) as executor:
        return asyncio.run(_until_stopped(server, names, tokens, crew, executor))


async def _until_stopped(
    server: str, names: Sequence[str], tokens: Mapping[str, str], crew: Crew, executor: Executor
) -> int:
    received: list[int] = []
    main = asyncio.current_task()
    assert main is not None

    def stop(number: int) -> None:
        received.append(number)
        main.cancel()

    with _handled(stop):
        try:
            async with asyncio.TaskGroup() as group:
                members = [group.create_task(_be(name, server, tokens, crew, executor)) for name in names]
        except asyncio.CancelledError:
            if not received:
                raise
            return SIGNALLED + received[0]
    return max((member.result() for member in members), default=FINISHED)


async def _be(name: str, server: str, tokens: Mapping[str, str], crew: Crew, executor: Executor) -> int:
    """One worker, until its run is finished or the server will not have it."""
    loop = asyncio.get_running_loop()

    async def compute(round: int, parameters: Tensor) -> Tensor:
        return await loop.run_in_executor(executor, crew.contribution, name, round, parameters)

    try:
        async with Client(server, name, tokens[name], crew.layout) as client:
            log.info("%s: %s", name, await work(client, compute))
    except ClientError as error:
        log.error("%s", error)
        return FAILED
    return FINISHED


@contextmanager
def _handled(stop: Callable[[int], None]) -> Generator[None]:
    """Send signals to `stop`, except those that the process was told to ignore."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [n for n in SIGNALS if on_main_thread and signal.getsignal(n) is not signal.SIG_IGN]
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
