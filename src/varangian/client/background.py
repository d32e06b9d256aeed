"""The event loop of a process's connections, in a thread of its own.

All workers of a process share it, and it stays until the program ends: with each event, gRPC wakes all
loops that there are, and an event for a loop that was closed is an error of another one. The thread goes on
while a user's program computes, so that the server hears from it, and never keeps the program from ending.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from varangian.worker.transport.client import ClientError

T = TypeVar("T")

END = 5.0
"""Seconds that the thread has to end."""


class Background:
    """An event loop in a thread."""

    _guard: ClassVar[threading.Lock] = threading.Lock()
    _shared: ClassVar[Background | None] = None

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="varangian-client", daemon=True
        )
        self._thread.start()
        # At the end of the program, after those of workers, which were made later.
        weakref.finalize(self, _stop, self._loop, self._thread, self._process)

    @classmethod
    def shared(cls) -> Background:
        """The loop of this process.

        Raises:
            ClientError: the process is a fork of one that was connected.
        """
        with cls._guard:
            if cls._shared is None:
                cls._shared = cls()
            found = cls._shared
        if found._process != os.getpid():
            raise ClientError(
                f"This process is a fork of process {found._process}, which has connected to a server, and "
                "gRPC works in one of the two. Connect after the fork, or start processes with the "
                "method spawn."
            )
        return found

    @property
    def is_here(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something there; to cancel the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_end_tasks())
    finally:
        loop.close()


async def _end_tasks() -> None:
    """Cancel all other tasks of this loop, and wait for their ends."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    if os.getpid() == process:
        with suppress(RuntimeError):  # it has ended on an error
            loop.call_soon_threadsafe(loop.stop)
        thread.join(END)
