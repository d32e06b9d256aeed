"""The event loop of a process's connections, in a thread of its own.

All workers of a process share it: an event loop of gRPC is woken by the events of all others. The thread
goes on while a user's program computes, so that the server hears from it, and never keeps the program from
ending.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from varangian.worker.transport.client import ClientError

T = TypeVar("T")

END = 5.0
"""Seconds that the thread has to end."""


class Background:
    """An event loop in a thread; `lease` it, and `release` it as often."""

    _guard: ClassVar[threading.Lock] = threading.Lock()
    _shared: ClassVar[Background | None] = None
    _used_by: ClassVar[int | None] = None
    """The process in which there was such a loop first; a fork of it cannot use gRPC."""

    def __init__(self) -> None:
        self._leases = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="varangian-client", daemon=True)
        self._thread.start()

    @classmethod
    def lease(cls) -> Background:
        """The loop of this process.

        Raises:
            ClientError: the process is a fork of one that was connected.
        """
        if cls._used_by not in (None, os.getpid()):
            raise ClientError(
                f"This process is a fork of process {cls._used_by}, which has connected to a server "
                "before: "
                "gRPC does not work in both. Start processes with the method spawn, or connect after the "
                "fork."
            )
        with cls._guard:
            cls._used_by = os.getpid()
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._leases += 1
            return cls._shared

    def release(self) -> None:
        """Give it back; the last to do so ends the thread."""
        with self._guard:
            self._leases -= 1
            if self._leases:
                return
            Background._shared = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_here:
            self._thread.join(END)

    @property
    def is_here(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something there; to cancel the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(end_tasks())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def end_tasks() -> None:
    """Cancel all other tasks of this loop, and wait for their ends."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
