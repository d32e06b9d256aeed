"""Transfers: the pieces of a payload that a turn sends, and how long a turn waits."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable
from time import monotonic
from typing import Protocol

BLOCK = 1 << 20
"""Bytes in one call of the system: few calls, and still in cache when they are looked at."""
TURN_WAIT = 0.002
"""Seconds that a turn waits for its socket, in all: to begin another turn costs as much."""


class SupportsSend(Protocol):
    """A socket, or what secures one."""

    def send(self, data: memoryview, /) -> int: ...


class Transfer:
    """A payload to be sent. Its pieces are made in the thread that sends them, one at a time.

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
        """Send what can be sent of one piece; returns how many bytes that was."""
        if self._rest is None:
            return 0
        sent = connection.send(self._rest)
        self._rest = self._rest[sent:] if sent < len(self._rest) else next(self._pieces, None)
        return sent


class SocketWait:
    """A short wait for a socket, bounded over a whole turn: a slow sender does not hold a thread."""

    def __init__(self, connection: socket.socket, event: int) -> None:
        self._poll = select.poll()
        self._poll.register(connection, event)
        self._left = TURN_WAIT

    def __call__(self) -> bool:
        """Whether it is ready now."""
        began = monotonic()
        ready = bool(self._left > 0 and self._poll.poll(self._left * 1000))
        self._left -= monotonic() - began
        return ready
