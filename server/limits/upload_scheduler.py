"""Fair scheduling of uploads: a few receive at once, in turns, and a stalled one delays no other."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

STALL = 0.05
"""Seconds in which nothing arrives, after which an upload gives up its turn while others wait."""


class UploadScheduler:
    """A bounded number of turns for uploads that receive at the same time.

    A few receivers share the cores better than fifteen, and bound the memory in flight. But if an upload
    kept its place until it is complete, as many slow workers as there are places would stop everyone else,
    and no column would be complete before the last row has begun. So a turn is short, and then goes to the
    upload that has waited longest: rows grow together.

    Args:
        receiving: how many uploads receive at once.
        turn_seconds: for which a turn lasts while others wait.
        turn_bytes: that a turn receives at most.
    """

    def __init__(self, receiving: int, turn_seconds: float, turn_bytes: int) -> None:
        self.turn_seconds = turn_seconds
        self.turn_bytes = turn_bytes
        self._free = receiving
        self._running = set[UploadTurn]()
        self._queue = deque[asyncio.Future[None]]()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """The number of uploads that wait for a turn."""
        return len(self._queue)

    def turn(self) -> UploadTurn:
        """The turns of one upload."""
        return UploadTurn(self)

    async def enter(self, turn: UploadTurn) -> None:
        if self._free:
            self._free -= 1
        else:
            await self._wait()
        self._running.add(turn)

    def leave(self, turn: UploadTurn) -> None:
        self._running.discard(turn)
        self._pass_on()

    async def _wait(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._start_timer()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._pass_on()
            elif place in self._queue:  # or it was found there, cancelled, by whoever had a turn to give
                self._queue.remove(place)
            raise

    def _pass_on(self) -> None:
        """Give a free turn to the first in the queue that is still waiting."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _start_timer(self) -> None:
        """One timer for all turns, and none while nobody waits."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STALL, self._end_stalled)

    def _end_stalled(self) -> None:
        self._timer = None
        for turn in [turn for turn in self._running if turn.stalled]:
            if self._queue:
                turn.release()
        if self._queue:
            self._start_timer()


class UploadTurn:
    """The turns of one upload: a context manager around the whole of it."""

    def __init__(self, scheduler: UploadScheduler) -> None:
        self._scheduler = scheduler
        self._now = asyncio.get_running_loop().time
        self._running = False
        self._since = 0.0
        self._taken = 0
        self._reading_since: float | None = None

    @property
    def stalled(self) -> bool:
        """Whether it has waited for a message for too long."""
        return self._reading_since is not None and self._now() - self._reading_since >= STALL

    async def before_read(self) -> None:
        """Call before a message is awaited: returns at once while the turn lasts, else queues again."""
        if self._running and self._is_over():
            if self._scheduler.waiting:
                self.release()
            else:
                self._begin()
        await self.acquire()
        self._reading_since = self._now()

    async def after_read(self, size: int) -> None:
        """Call when the message has come. The turn may have been given up meanwhile."""
        self._reading_since = None
        await self.acquire()
        self._taken += size

    async def acquire(self) -> None:
        """Wait for a turn, unless there is one already."""
        if not self._running:
            await self._scheduler.enter(self)
            self._running = True
            self._begin()

    def release(self) -> None:
        """Leave the turn to others; `before_read` queues again."""
        if self._running:
            self._running = False
            self._scheduler.leave(self)

    def _is_over(self) -> bool:
        limits = self._scheduler
        return self._taken >= limits.turn_bytes or self._now() - self._since >= limits.turn_seconds

    def _begin(self) -> None:
        self._since, self._taken = self._now(), 0

    async def __aenter__(self) -> UploadTurn:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
