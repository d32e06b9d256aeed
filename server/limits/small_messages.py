"""Admission of small messages: one of each worker is read at a time, and those of so many workers.

gRPC holds back all but a few kilobytes of a message until somebody reads it. Then it takes in as much as
it says it has, up to the largest that any call may bring. So the messages that are being read at once are
what half-sent ones can cost, and they are counted.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


def most_readers(workers: int) -> int:
    """How many small messages may be read at once: more than bad workers have, as each has one."""
    return workers // 2 + 1


class SmallMessages:
    """Who may read a small message now.

    Args:
        workers: of the run.
    """

    def __init__(self, workers: int) -> None:
        self._seats = asyncio.Semaphore(most_readers(workers))
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def reading(self, worker: str) -> AsyncGenerator[None]:
        """Wait for the other messages of this worker, and then for a seat; keep both in this context."""
        async with self._turns[worker], self._seats:
            yield
