"""One data connection of a worker, opened by this end."""

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
USED, NEW = 5.0, 3.0
"""Seconds for which a connection is kept unused after a payload, and before the first one: routers may
forget one that is silent for longer, without telling either end; a server closes those without a ticket
sooner.
"""
THREADS = max(2, min(4, os.cpu_count() or 2))
"""Threads that move payloads; more would compete for the same cores."""


class Threads:
    """The threads of all data connections of a process, which may host many workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._pool: ThreadPoolExecutor | None = None

    def enter(self) -> Executor:
        """Get the threads for one more connection."""
        with self._lock:
            self._users += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, "varangian-worker-data")
            return self._pool

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None


THE_THREADS = Threads()


class OpenConnection:
    """An open data connection, and the state of its socket."""

    def __init__(self, found: socket.socket) -> None:
        try:
            self.data = DataConnection(found, THE_THREADS.enter())
        except OSError:  # broken already
            THE_THREADS.leave()
            found.close()
            raise
        self._until = monotonic() + NEW
        self._socket: socket.socket | None = found

    @property
    def usable(self) -> bool:
        """Whether it was used a moment ago and nothing has arrived since: neither its end nor data."""
        if self._socket is None or self.data.closed or monotonic() > self._until:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    @property
    def broken(self) -> bool:
        """Whether it has ended in a way that may have lost what was sent; not if it was closed in order."""
        if self._socket is None or self.data.closed:
            return True
        try:
            # Whoever has sent a payload receives no data; the end of the connection reads as none, too.
            return bool(self._socket.recv(1, socket.MSG_PEEK)) or self.unsent > 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def unsent(self) -> int:
        """Bytes that were sent and not acknowledged yet, as far as the system says."""
        if self._socket is None or self.data.closed:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def end_payload(self) -> None:
        """Note that a payload has been moved."""
        self.data.end()
        self._until = monotonic() + USED

    def close(self) -> None:
        self.data.close()
        if self._socket is not None:
            self._socket = None
            THE_THREADS.leave()


async def open_connection(host: str, port: int) -> OpenConnection:
    """Open a data connection.

    Raises:
        OSError: that failed.
    """
    return OpenConnection(await _connect(host, port))


async def _connect(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers."""
    failure: OSError = TimeoutError()
    async with asyncio.timeout(PATIENCE):
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in addresses:
            try:
                async with asyncio.timeout(PATIENCE / len(addresses)):
                    return await _connect_to(family, address)
            except OSError as error:
                failure = error
    try:
        raise failure
    finally:
        del failure  # which has this frame now


async def _connect_to(family: int, address: Any) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setblocking(False)
        await asyncio.get_running_loop().sock_connect(found, address)
    except BaseException:
        found.close()
        raise
    return found
