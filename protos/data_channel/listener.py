"""The listening end of the data channel: hands each connection to the call whose ticket it shows.

A call that wants its payload here makes a ticket: random bytes that it tells its caller over gRPC, and that
the caller then writes on a data connection. So a connection is worth nothing to whoever has no open call,
and nothing that arrives on it is understood except tickets. To refuse a connection is to close it; the call
says why.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.network.descriptors import UNIDENTIFIED
from varangian.protos.refusals import Refusal
from varangian.structured_logs import event

log = logging.getLogger(__name__)

THREADS = max(2, min(4, os.cpu_count() or 2))
"""Threads that move payloads; more would compete for the same cores."""
BACKLOG = 128
ACCEPT_PAUSE = 0.1
"""Seconds before the next connection is accepted after the system could not give us one."""
STRANGER = "a stranger"
"""The other end of a connection that has not shown a ticket yet, in the log."""

OnRefusal: TypeAlias = Callable[[str, str, str], None]
"""Told of a connection that is closed: whose it was, a stable code and a sentence."""


@dataclass(frozen=True)
class IdleLimits:
    """Limits of connections that carry no payload."""

    unidentified: int = UNIDENTIFIED
    """Connections without a ticket yet; one more closes the oldest of the address that has most of them."""
    first_ticket: float = 5.0
    """Seconds in which a new connection has to show a ticket."""
    next_ticket: float = 60.0
    """Seconds without a ticket after which a connection is closed."""
    age: float = 3600.0
    """Seconds after which a connection takes no further ticket."""


DEFAULT_LIMITS = IdleLimits()


class BoundedTasks:
    """Tasks of which there may be only so many: one more ends the oldest of the largest group.

    Args:
        most: how many.
        on_end: called for each that is ended.
    """

    def __init__(self, most: int, on_end: Callable[[], None]) -> None:
        self._most = most
        self._on_end = on_end
        self._tasks: dict[asyncio.Task[object], str] = {}
        """The group of each, the oldest first."""

    @contextmanager
    def one_more(self, group: str = "") -> Generator[None, None, None]:
        """The current task is one of them, of this group, in this context."""
        task = asyncio.current_task()
        assert task is not None
        while len(self._tasks) >= self._most:
            (largest, _), *_ = Counter(self._tasks.values()).most_common(1)
            oldest = next(task for task, its in self._tasks.items() if its == largest)
            del self._tasks[oldest]
            oldest.cancel()
            self._on_end()
        self._tasks[task] = group
        try:
            yield
        finally:
            self._tasks.pop(task, None)


class DataListener:
    """Accepts data connections, and hands each to the call whose ticket it shows.

    Args:
        unused: connections of one worker that carry no payload just now.
        encrypted: whether payloads are encrypted; so they should be where calls go over TLS.
        on_refusal: called for each connection that is closed.
        limits: what connections that carry no payload may cost.
    """

    def __init__(
        self, unused: int, encrypted: bool, on_refusal: OnRefusal, limits: IdleLimits = DEFAULT_LIMITS
    ) -> None:
        self.port = 0
        self._on_refusal = on_refusal
        self._encrypted = encrypted
        self._limits = limits
        self._most_unused = unused
        self._threads = ThreadPoolExecutor(THREADS, "varangian-data")
        self._sockets: Sequence[socket.socket] = ()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._tickets: dict[bytes, DataTicket] = {}
        crowded = partial(_refuse, on_refusal, STRANGER, Refusal.CROWD)
        self._unidentified = BoundedTasks(limits.unidentified, crowded)
        self._unused: dict[str, BoundedTasks] = {}

    def listen(self, sockets: Sequence[socket.socket]) -> int:
        """Accept connections on these sockets from now on, and close them at the end; returns the port."""
        self._sockets = sockets
        self.port = int(sockets[0].getsockname()[1])
        for listener in sockets:
            listener.setblocking(False)
            listener.listen(BACKLOG)
            self._resume(listener)
        return self.port

    def ticket(self, transfer: AssociatedData) -> DataTicket:
        """A ticket for the payload of one call."""
        return DataTicket(transfer, self._encrypted, self._tickets)

    async def close(self) -> None:
        """Close every connection, also those in use, and accept no more."""
        for listener in self._sockets:
            self._suspend(listener)
            listener.close()
        self._sockets = ()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for ticket in [*self._tickets.values()]:
            ticket.void()
        await asyncio.to_thread(self._threads.shutdown)

    def _resume(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _suspend(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        if pause := self._pauses.pop(listener, None):
            pause.cancel()

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection only, so that those before it get to say something."""
        try:
            accepted, (host, *_) = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:
            self._pause(listener, error)
            return
        try:
            connection = DataConnection(accepted, self._threads)
        except OSError:
            accepted.close()
            return
        task = asyncio.create_task(self._serve(connection, str(host)))
        self._tasks.add(task)
        task.add_done_callback(partial(self._close, connection))

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Look again later: the connection still waits, so to look at once would be to do nothing else."""
        self._suspend(listener)
        self._pauses[listener] = asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._resume, listener)
        code = errno.errorcode.get(error.errno or 0, "OSError")
        self._on_refusal("new connections", code, error.strerror or str(error))

    def _close(self, connection: DataConnection, task: asyncio.Task[None]) -> None:
        """Close a connection after its task, which may have been cancelled before it began."""
        self._tasks.discard(task)
        connection.close()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error(
                "data port: a connection was given up", exc_info=error, extra=event("connection_failed")
            )

    async def _serve(self, connection: DataConnection, host: str) -> None:
        """Serve one ticket after the other."""
        oldest = asyncio.get_running_loop().time() + self._limits.age
        with self._unidentified.one_more(host):
            ticket = await self._first_ticket(connection)
        while ticket is not None and await ticket.serve(connection):
            worker, ticket = ticket.worker, None
            with self._unused_of(worker).one_more(), suppress(OSError):
                left = oldest - asyncio.get_running_loop().time()
                async with asyncio.timeout(min(self._limits.next_ticket, left)):
                    ticket = await self._read_ticket(connection, worker)

    def _unused_of(self, worker: str) -> BoundedTasks:
        """The connections of a worker that carry nothing just now."""
        crowded = partial(_refuse, self._on_refusal, worker, Refusal.CROWD)
        return self._unused.setdefault(worker, BoundedTasks(self._most_unused, crowded))

    async def _first_ticket(self, connection: DataConnection) -> DataTicket | None:
        """Read the first ticket, which also says whose connection it is."""
        try:
            async with asyncio.timeout(self._limits.first_ticket):
                return await self._read_ticket(connection, STRANGER)
        except TimeoutError:
            _refuse(self._on_refusal, STRANGER, Refusal.SILENT)
        except OSError as error:
            log.debug("data port: a connection ended before it showed a ticket: %s", error)
        return None

    async def _read_ticket(self, connection: DataConnection, who: str) -> DataTicket | None:
        """Read the next ticket; None, and the connection is refused, for anything else."""
        ticket = self._tickets.get(await connection.read_exactly(TICKET))
        if ticket is None:
            _refuse(self._on_refusal, who, Refusal.TICKET)
        return ticket


def _refuse(on_refusal: OnRefusal, who: str, refusal: Refusal) -> None:
    """Tell of a connection that is closed."""
    on_refusal(who, refusal.code, refusal.sentence)
