"""One line of a worker: a connection beside gRPC, opened by this end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import sys
import termios
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from time import monotonic
from typing import Any

from varangian.protos.data_channel.connection import DataConnection

PATIENCE = 2.0
"""Seconds to connect."""
FRESH, NEW = 5.0, 3.0
"""Seconds for which an unused line is kept: routers on the way may forget a connection that is silent for
longer, without telling either end. A server takes less trouble with one that it has seen no ticket on.
"""
THREADS = max(2, min(4, os.cpu_count() or 2))
"""More would stand in each other's way."""


class Threads:
    """Where all lanes of a process move bytes: it may be many workers. Gone when there is no line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._pool: ThreadPoolExecutor | None = None

    def enter(self) -> Executor:
        """For one more line."""
        with self._lock:
            self._users += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, "varangian-line")
            return self._pool

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None


THE_THREADS = Threads()


class Connected:
    """An open line, of which its socket can be looked at."""

    def __init__(self, found: socket.socket) -> None:
        try:
            self.line = DataConnection(found, THE_THREADS.enter())
        except OSError:  # broken already
            THE_THREADS.leave()
            found.close()
            raise
        self._until = monotonic() + NEW
        self._socket: socket.socket | None = found

    @property
    def usable(self) -> bool:
        """Used a moment ago, and nothing has come since: neither its end nor what nobody asked for."""
        if self._socket is None or self.line.closed or monotonic() > self._until:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    @property
    def broken(self) -> bool:
        """Whether it has ended in a way that may have lost what was sent; not if it was closed in order."""
        if self._socket is None or self.line.closed:
            return True
        try:
            # Nothing is ever said to who has sent a payload; the end of the connection is nothing as well.
            return bool(self._socket.recv(1, socket.MSG_PEEK)) or self.unsent > 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def unsent(self) -> int:
        """Bytes that were sent and have not arrived, as far as the system says."""
        if self._socket is None or self.line.closed:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def served(self) -> None:
        """A payload has come through."""
        self.line.end()
        self._until = monotonic() + FRESH

    def close(self) -> None:
        self.line.close()
        if self._socket is not None:
            self._socket = None
            THE_THREADS.leave()


async def open_connection(host: str, port: int) -> Connected:
    """A new line.

    Raises:
        OSError: there is none.
    """
    return Connected(await _called(host, port))


async def _called(host: str, port: int) -> socket.socket:
    """Connected to the first address of a host that answers."""
    failure: OSError = TimeoutError()
    async with asyncio.timeout(PATIENCE):
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in addresses:
            try:
                async with asyncio.timeout(PATIENCE / len(addresses)):
                    return await _reached(family, address)
            except OSError as error:
                failure = error
    raise failure


async def _reached(family: int, address: Any) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setblocking(False)
        await asyncio.get_running_loop().sock_connect(found, address)
    except BaseException:
        found.close()
        raise
    return found
