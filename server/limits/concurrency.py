"""Concurrency limits: calls that one worker may have open, and small messages that are read at once."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal


class StreamQuota:
    """A quota of the streams that each worker may have open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = Counter[str]()

    @contextmanager
    def stream(self, worker: str) -> Generator[None, None, None]:
        """One stream, for as long as the context lasts.

        Raises:
            Refused: the worker has as many as it may have.
        """
        if self._open[worker] >= self._most:
            raise Refused(Refusal.STREAMS, most=self._most)
        self._open[worker] += 1
        try:
            yield
        finally:
            self._open[worker] -= 1


@dataclass(eq=False)
class _OpenCall:
    task: asyncio.Task[object]
    replaced: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def replace(self) -> None:
        if not self.replaced:
            self.replaced = True
            self.task.cancel()


class NewestCalls:
    """One call of a kind for each worker: a newer one ends the older, often that of a dead connection."""

    def __init__(self) -> None:
        self._calls: dict[str, _OpenCall] = {}

    @asynccontextmanager
    async def call(self, worker: str) -> AsyncGenerator[None, None]:
        """Be the only call of a worker, once the one before has released what it holds.

        Raises:
            Refused: a newer one has come.
        """
        while (before := self._calls.get(worker)) is not None:
            before.replace()
            await before.over.wait()
        task = asyncio.current_task()
        assert task is not None
        mine = self._calls[worker] = _OpenCall(task)
        try:
            yield
        except asyncio.CancelledError:
            if not mine.replaced or task.uncancel():
                raise
            raise Refused(Refusal.REPLACED) from None
        finally:
            del self._calls[worker]
            mine.over.set()


def most_readers(workers: int) -> int:
    """The most small messages read at once: more than Byzantine workers have, as each has one."""
    return workers // 2 + 1


class SmallMessages:
    """Admission of small messages: one of each worker is read at a time, and those of so many workers.

    gRPC holds back all but a few kilobytes of a message until somebody reads it. Then it takes in as much
    as the message says it has, up to the largest that any call may bring. So the number of messages that
    are read at once bounds what half-sent ones can cost.

    Args:
        workers: of the run.
    """

    def __init__(self, workers: int) -> None:
        self._most = most_readers(workers)
        self._readers = asyncio.Semaphore(self._most)
        self._of_worker: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def grow(self, workers: int) -> None:
        """The run has so many workers now; with fewer than before nothing changes."""
        while self._most < most_readers(workers):
            self._most += 1
            self._readers.release()

    @asynccontextmanager
    async def reading(self, worker: str) -> AsyncGenerator[None]:
        """Wait for the other messages of this worker, then for a free reader; hold both in this context."""
        async with self._of_worker[worker], self._readers:
            yield
