"""What one turn of a line moves, and the memory it moves it through."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Protocol, TypeAlias

BLOCK = 1 << 20
"""Bytes at once: few calls, and still in cache when they are looked at."""
LINGER = 0.002
"""Seconds that a turn waits for more, in all: to come back to it costs as much."""

Sink: TypeAlias = Callable[[memoryview], None]
Receive: TypeAlias = Callable[[memoryview], int]
Fill: TypeAlias = Callable[[Receive, int], int]
"""Calls the first once, with at most so many bytes of memory, and returns what it returned."""
_buffers = threading.local()


class SupportsSend(Protocol):
    """A socket, or what secures one."""

    def send(self, data: memoryview, /) -> int: ...


class Transfer:
    """What is to be sent. The pieces are made in the thread that sends them, one at a time.

    Args:
        pieces: none of them empty, and none changed before the next is asked for.
    """

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = iter(pieces)
        self._rest = next(self._pieces, None)

    @property
    def done(self) -> bool:
        return self._rest is None

    def step(self, connection: SupportsSend) -> int:
        """Send what can be sent of one piece; how much that was."""
        if self._rest is None:
            return 0
        sent = connection.send(self._rest)
        self._rest = self._rest[sent:] if sent < len(self._rest) else next(self._pieces, None)
        return sent


class SocketWait:
    """Waits a moment for a socket, no longer in all of a turn: whoever drips gets no thread for that."""

    def __init__(self, connection: socket.socket, event: int) -> None:
        self._poll = select.poll()
        self._poll.register(connection, event)
        self._left = LINGER

    def __call__(self) -> bool:
        """Whether it is ready now."""
        began = monotonic()
        ready = bool(self._left > 0 and self._poll.poll(self._left * 1000))
        self._left -= monotonic() - began
        return ready


def through_thread_buffer(sink: Sink) -> Fill:
    """Through a buffer of the thread."""

    def fill(receive: Receive, most: int) -> int:
        memory = thread_buffer()[:most]
        count = receive(memory)
        if count:
            sink(memory[:count])
        return count

    return fill


def thread_buffer(purpose: str = "plain", size: int = BLOCK) -> memoryview:
    """Memory that is always the same for each thread and purpose."""
    found: memoryview | None = getattr(_buffers, purpose, None)
    if found is None:
        found = memoryview(bytearray(size))
        setattr(_buffers, purpose, found)
    return found
