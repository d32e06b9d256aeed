"""Idle time-out: bounds how long the other end may send nothing, never how long a whole transfer takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class IdleTimeout:
    """Ends a stream when the other end is idle for too long; one timer for all of its messages."""

    def __init__(self, idle: float, timer: asyncio.Timeout) -> None:
        self._idle = idle
        self._timer: asyncio.Timeout | None = timer
        self._now = asyncio.get_running_loop().time

    async def wait(self, message: Awaitable[T]) -> T:
        """Wait for the other end. The time between two waits does not count."""
        assert self._timer is not None, "its context is over"
        self._timer.reschedule(self._now() + self._idle)
        result = await message
        self._timer.reschedule(None)
        return result

    def end(self) -> None:
        """Forget the timer. That knows its task, and an error that ends the task may know this."""
        self._timer = None


@asynccontextmanager
async def idle_timeout(idle: float) -> AsyncGenerator[IdleTimeout, None]:
    """While a stream is read or written.

    Raises:
        TimeoutError: one wait has taken `idle` seconds.
    """
    async with asyncio.timeout(None) as timer:
        waits = IdleTimeout(idle, timer)
        try:
            yield waits
        finally:
            waits.end()
