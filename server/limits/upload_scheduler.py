"""Fair admission: a few uploads receive at once, all go on together, and nobody can sit on a seat."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

PAUSE = 0.05
"""Seconds in which nothing arrives, after which a seat is given up while others wait."""


class UploadScheduler:
    """Seats for the uploads that receive at the same time.

    A few receivers share the cores better than fifteen, and bound the memory in flight. But with seats held
    until an upload is complete, as many slow workers as there are seats would stop everyone else, and no
    column would be complete before the last row has begun. So a seat is held for one turn, and then goes to
    the one that has waited longest: rows grow together.

    Args:
        seats: how many uploads receive at once.
        turn: seconds that a seat is kept while others wait.
        share: bytes in a turn.
    """

    def __init__(self, seats: int, turn: float, share: int) -> None:
        self.turn = turn
        self.share = share
        self._free = seats
        self._seated = set[UploadTurn]()
        self._queue = deque[asyncio.Future[None]]()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def seat(self) -> UploadTurn:
        return UploadTurn(self)

    async def enter(self, seat: UploadTurn) -> None:
        if self._free:
            self._free -= 1
        else:
            await self._turn()
        self._seated.add(seat)

    def leave(self, seat: UploadTurn) -> None:
        self._seated.discard(seat)
        self._pass_on()

    async def _turn(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._watch()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._pass_on()
            else:
                self._queue.remove(place)
            raise

    def _pass_on(self) -> None:
        """A seat is free: for the first in the queue, who may have gone in this very moment."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _watch(self) -> None:
        """One timer for all seats, and none as long as nobody waits."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._look)

    def _look(self) -> None:
        self._timer = None
        for seat in [seat for seat in self._seated if seat.quiet]:
            if self._queue:
                seat.stand()
        if self._queue:
            self._watch()


class UploadTurn:
    """One upload's place at the gate: a context manager around the whole upload."""

    def __init__(self, gate: UploadScheduler) -> None:
        self._upload_scheduler = gate
        self._now = asyncio.get_running_loop().time
        self._seated = False
        self._since = 0.0
        self._taken = 0
        self._listening: float | None = None

    @property
    def quiet(self) -> bool:
        """Whether it has listened for too long."""
        return self._listening is not None and self._now() - self._listening >= PAUSE

    async def listen(self) -> None:
        """To call before a message is awaited: returns at once while the turn lasts, else queues again."""
        if self._seated and self._over():
            if self._upload_scheduler.waiting:
                self.stand()
            else:
                self._begin()
        await self.sit()
        self._listening = self._now()

    async def heard(self, size: int) -> None:
        """To call when it has come. The seat may have been given up meanwhile."""
        self._listening = None
        await self.sit()
        self._taken += size

    async def sit(self) -> None:
        if not self._seated:
            await self._upload_scheduler.enter(self)
            self._seated = True
            self._begin()

    def stand(self) -> None:
        """Leave the seat to others; who wants to go on queues again."""
        if self._seated:
            self._seated = False
            self._upload_scheduler.leave(self)

    def _over(self) -> bool:
        return (
            self._taken >= self._upload_scheduler.share
            or self._now() - self._since >= self._upload_scheduler.turn
        )

    def _begin(self) -> None:
        self._since, self._taken = self._now(), 0

    async def __aenter__(self) -> UploadTurn:
        await self.sit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stand()
