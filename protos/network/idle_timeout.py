"""Deadlines by progress: only how long the other end says nothing is measured, never the whole transfer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class IdleTimeout:
    """Ends a stream when the other end lets us wait for too long: one timer for all of its messages."""

    def __init__(self, idle: float, timer: asyncio.Timeout) -> None:
        self._idle = idle
        self._timer = timer
        self._now = asyncio.get_running_loop().time

    async def broken_by(self, message: Awaitable[T]) -> T:
        """Wait for the other end. How long we are busy in between does not count."""
        self._timer.reschedule(self._now() + self._idle)
        result = await message
        self._timer.reschedule(None)
        return result


@asynccontextmanager
async def idle_timeout(idle: float) -> AsyncGenerator[IdleTimeout, None]:
    """For as long as a stream is read or written.

    Raises:
        TimeoutError: after `idle` seconds of waiting in one piece.
    """
    async with asyncio.timeout(None) as timer:
        yield IdleTimeout(idle, timer)
