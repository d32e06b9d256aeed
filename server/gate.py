"""Fair admission: a few uploads receive at once, and nobody can sit on a seat while others wait."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Gate:
    """Seats for the uploads that receive at the same time.

    Two receivers share the cores better than fifteen, and a few bound the memory in flight. But with seats
    held until an upload is complete, as many slow workers as there are seats would stop everyone else. So a
    seat is held for one turn; after that it goes to the one that has waited longest.

    Args:
        seats: how many uploads receive at once.
        turn: seconds that a seat is kept while others wait.
    """

    def __init__(self, seats: int, turn: float) -> None:
        self._free = asyncio.Semaphore(seats)
        self.turn = turn
        self.waiting = 0

    def seat(self) -> Seat:
        return Seat(self)

    async def enter(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    def leave(self) -> None:
        self._free.release()


class Seat:
    """One upload's place at the gate: a context manager around the whole upload."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self) -> None:
        """To call before each message: returns at once while the turn lasts, else queues again."""
        if self._timer is None:
            await self._gate.enter()
            self._start()

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._gate.turn, self._over)

    def _over(self) -> None:
        if self._gate.waiting:
            self._stand()
        else:
            self._start()

    def _stand(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._gate.leave()

    async def __aenter__(self) -> Seat:
        await self.keep()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stand()
