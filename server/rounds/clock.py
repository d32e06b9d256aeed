"""Waiting for a moment, and for news: the only two things that the server ever waits for on its own."""

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
    """Where time comes from, so that a test can let an hour pass without waiting for it."""

    now: Callable[[], Seconds] = time.monotonic
    """Never goes back."""
    call_later: Callable[[Seconds, Act], Timer] = _on_this_loop
    """Call after so many seconds of the same time."""


MONOTONIC = Clock()


class Alarm:
    """One call at a moment that may be put off or called off."""

    def __init__(self, clock: Clock, ring: Act) -> None:
        self._clock = clock
        self._ring = ring
        self._at: Seconds | None = None
        self._timer: Timer | None = None

    def set(self, at: Seconds | None) -> None:
        """Ring at this moment instead of any other; not at all if None."""
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
    """The latest of something, for any number of readers who wait for a later one."""

    def __init__(self, latest: T, clock: Clock) -> None:
        self.latest = latest
        self._clock = clock
        self._readers = set[asyncio.Future[None]]()

    def publish(self, latest: T) -> None:
        self.latest = latest
        for reader in self._readers:
            _wake(reader)

    async def when(self, interesting: Callable[[T], bool], patience: Seconds) -> T | None:
        """The latest, once it is interesting; None when patience ran out first."""
        until = self._clock.now() + patience
        while not interesting(self.latest):
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
