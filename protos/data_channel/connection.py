"""Data connections: TCP beside gRPC, on which nothing but tickets and payloads travels.

gRPC for Python copies every byte several times and wakes the event loop for each message. Here bytes go
from the socket into a buffer that stays in cache, and from there to where they belong. Threads do that in
turns: a turn moves what can be moved now, so no thread waits long for the other end, and between turns the
event loop decides which connection goes on.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Literal, TypeAlias, TypeVar

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.encrypted_stream import EncryptedStream
from varangian.protos.data_channel.transfer import (
    BLOCK,
    SocketWait,
    Transfer,
)
from varangian.protos.network.thread_results import result_of
from varangian.protos.payloads.receiving import Fill

__all__ = ["TICKET", "TURN_BYTES", "DataConnection", "DataConnectionError", "Transfer"]

TICKET = 16
"""Bytes that say which call a payload belongs to."""
TURN_BYTES = 4 << 20
"""Bytes that a turn moves at most."""
Direction: TypeAlias = Literal["read", "write"]
T = TypeVar("T")

PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""TCP keepalive: a peer that has gone is known to be after 25 s."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: a reset in place of a clean close."""


class DataConnectionError(ConnectionError):
    """The connection has ended, or is of no use any more."""


class DataConnection:
    """One connection. The event loop calls its methods, one at a time.

    Args:
        connection: a connected socket, which this object closes.
        threads: which move the bytes.
    """

    def __init__(self, connection: socket.socket, threads: Executor) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES.items():
            if (number := getattr(socket, option, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, number, value)
        self._connection = connection
        self._threads = threads
        self._payload: socket.socket | EncryptedStream = connection
        self._loop = asyncio.get_running_loop()
        self._turn: Future[int] | None = None
        self._waits: Direction | None = None
        """The need of the last turn, which could not go on without waiting."""
        self._wake: Callable[[], None] | None = None
        """Ends the wait for the socket, if there is one."""
        self.closed = False

    async def read_exactly(self, size: int) -> bytes:
        """Read so many bytes; few."""
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            count = await self._retry("read", partial(self._connection.recv_into, rest))
            if not count:
                raise DataConnectionError("The other end has hung up.")
            rest = rest[count:]
        return bytes(found)

    async def write(self, data: bytes) -> None:
        """Write these bytes; few."""
        while data:
            data = data[await self._retry("write", partial(self._connection.send, data)) :]

    def begin(self, key: bytes, transfer: AssociatedData) -> None:
        """A payload comes next, encrypted if there is a key, which no other payload has."""
        self._payload = self._connection
        if key:
            self._payload = EncryptedStream(self._connection, key, transfer.associated(), transfer.size)
        self._waits = None  # the last one may have gone the other way

    def end(self) -> None:
        """The payload has been moved."""
        self._payload = self._connection

    async def ready(self) -> None:
        """Wait until the next turn may move something; not at all if the last one moved all that it might.

        Raises:
            DataConnectionError: the connection was closed meanwhile.
        """
        if self._waits is not None:
            await self._until(self._waits)

    async def wait_readable(self) -> None:
        """Wait until the other end has sent something, or the connection has ended."""
        with suppress(DataConnectionError):
            await self._until("read")

    async def receive(self, size: int, fill: Fill) -> int:
        """One turn: receive what has arrived, up to `size` bytes; returns how many they were.

        Args:
            size: bytes at most.
            fill: has the memory for them, and takes them piece by piece; called in a thread.

        Raises:
            DataConnectionError: the connection has ended.
        """
        return await self._in_thread(lambda: self._received(size, fill))

    async def send(self, transfer: Transfer, turn_bytes: int = TURN_BYTES) -> int:
        """One turn: send what can be sent, up to about `turn_bytes`; returns how many they were.

        Raises:
            DataConnectionError: the connection has ended.
        """
        return await self._in_thread(lambda: self._sent(transfer, turn_bytes))

    def abort(self) -> None:
        """Close with a reset: the other end hears of it at once, and what is on its way to it is lost.

        A connection that is closed while its other end waits for room may leave it waiting for a minute:
        what is left of it in the system goes on saying that there is none.
        """
        with suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        """End the connection, also in the middle of a turn."""
        if self.closed:
            return
        self.closed = True
        if self._wake is not None:
            self._wake()
        if self._turn is None or self._turn.done():
            self._connection.close()
            return
        # The number of a closed socket may be another's in the next moment: not while a thread uses it.
        self._turn.add_done_callback(lambda _: self._connection.close())
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _received(self, size: int, fill: Fill) -> int:
        got, self._waits, wait = 0, None, SocketWait(self._connection, select.POLLIN)
        while got < size and not self.closed:
            try:
                count = fill(self._payload.recv_into, min(BLOCK, size - got))
            except BlockingIOError:
                if wait():
                    continue
                self._waits = "read"
                break
            if not count:
                raise DataConnectionError("The other end has hung up.")
            got += count
        return got

    def _sent(self, transfer: Transfer, turn_bytes: int) -> int:
        sent, self._waits, wait = 0, None, SocketWait(self._connection, select.POLLOUT)
        while sent < turn_bytes and not transfer.done and not self.closed:
            try:
                sent += transfer.step(self._payload)
            except BlockingIOError:
                if wait():
                    continue
                self._waits = "write"
                break
        return sent

    async def _in_thread(self, turn: Callable[[], int]) -> int:
        if self.closed:
            raise DataConnectionError("The connection was closed.")
        self._turn = self._threads.submit(turn)
        try:
            # A turn that has begun does not end with who waits for it; until then it keeps the socket.
            moved = await result_of(self._turn)
        except asyncio.CancelledError:
            self.close()
            raise
        except OSError as error:
            raise _as_connection_error(error) from None
        finally:
            if self._turn is not None and self._turn.done():
                self._turn = None  # an error that it holds would hold this connection
        if self.closed:
            raise DataConnectionError("The connection was closed.")
        return moved

    async def _retry(self, direction: Direction, step: Callable[[], T]) -> T:
        """Do something as soon as the socket allows it."""
        while not self.closed:
            try:
                return step()
            except BlockingIOError:
                await self._until(direction)
            except OSError as error:
                raise _as_connection_error(error) from None
        raise DataConnectionError("The connection was closed.")

    async def _until(self, direction: Direction) -> None:
        """Wait until the socket is ready for this direction."""
        if self.closed:
            raise DataConnectionError("The connection was closed.")
        ready: asyncio.Future[None] = self._loop.create_future()
        number, loop = self._connection.fileno(), self._loop
        add, remove = {
            "read": (loop.add_reader, loop.remove_reader),
            "write": (loop.add_writer, loop.remove_writer),
        }[direction]

        def wake() -> None:
            # At once: after the socket is closed its number may be that of another one.
            remove(number)
            self._wake = None
            if not ready.done():
                ready.set_result(None)

        add(number, wake)
        self._wake = wake
        try:
            await ready
        finally:
            if self._wake is wake:
                wake()
        if self.closed:
            raise DataConnectionError("The connection was closed.")


def _as_connection_error(error: OSError) -> OSError:
    """A DataConnectionError of any error of the system."""
    if isinstance(error, DataConnectionError):
        return error
    return DataConnectionError(f"The connection broke: {error.strerror or error}")
