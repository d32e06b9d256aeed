"""Clock of the event loop, and what waits for it: an alarm, and a value whose readers wait for a change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from varangian.server.protocol.events import Seconds

T = TypeVar("T")
Act: TypeAlias = Callable[[], None]


class Timer(Protocol):
    def cancel(self) -> None: ...


def _on_this_loop(delay: Seconds, act: Act) -> Timer:
    return asyncio.get_running_loop().call_later(delay, act)


@dataclass(frozen=True)
class Clock:
    """Source of time: of a test or a simulation, time passes without anybody waiting for it."""

    now: Callable[[], Seconds] = time.monotonic
    """In seconds; never goes back."""
    call_later: Callable[[Seconds, Act], Timer] = _on_this_loop
    """Call after so many seconds of the same time."""


MONOTONIC = Clock()


class Alarm:
    """One call at a moment that can be changed or cancelled."""

    def __init__(self, clock: Clock, ring: Act) -> None:
        self._clock = clock
        self._ring = ring
        self._at: Seconds | None = None
        self._timer: Timer | None = None

    def set(self, at: Seconds | None) -> None:
        """Ring at this moment and no other; never if None."""
        if at == self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        left = None if at is None else max(0.0, at - self._clock.now())
        self._timer = None if left is None else self._clock.call_later(left, self._rung)

    def _rung(self) -> None:
        self._at = self._timer = None
        self._ring()


class LatestValue(Generic[T]):
    """The latest of a series of values, for any number of readers that wait for a later one."""

    def __init__(self, latest: T, clock: Clock) -> None:
        self.latest = latest
        self._clock = clock
        self._readers = set[asyncio.Future[None]]()

    def publish(self, latest: T) -> None:
        self.latest = latest
        for reader in self._readers:
            _wake(reader)

    async def wait_for(self, wanted: Callable[[T], bool], patience: Seconds) -> T | None:
        """The latest value, once it is wanted; None after `patience` seconds."""
        until = self._clock.now() + patience
        while not wanted(self.latest):
            left = until - self._clock.now()
            if left <= 0:
                return None
            await self._change(left)
        return self.latest

    async def _change(self, patience: Seconds) -> None:
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(patience, lambda: _wake(reader))
        self._readers.add(reader)
        try:
            await reader
        finally:
            timer.cancel()
            self._readers.discard(reader)


def _wake(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)
