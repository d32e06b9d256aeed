"""Where payloads come in and go out beside gRPC.

A call that wants its payload here makes a ticket: random bytes that it tells its caller over gRPC, and that
the caller then writes on a connection of its own. So a connection is worth nothing to whoever has no call
under way, and nothing that comes over it is understood except tickets. What is refused here is a closed
connection; the call says why.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.network.descriptors import STRANGERS
from varangian.protos.refusals import Refusal
from varangian.server.transport.calls import Limits
from varangian.server.transport.grpc_server import bind_sockets

__all__ = ["DataListener", "DataTicket", "StrangerLimits"]

log = logging.getLogger(__name__)

THREADS = max(2, min(4, os.cpu_count() or 2))
"""More would stand in each other's way."""
BACKLOG = 128
PAUSE = 0.1
"""Seconds before the next connection is taken after the system could not give us one."""
STRANGER = "a stranger"


@dataclass(frozen=True)
class StrangerLimits:
    """What connections without a payload may cost."""

    strangers: int = STRANGERS
    """Connections that have shown nothing yet; one more ends the oldest of the address that has most."""
    showing: float = 5.0
    """Seconds in which they have to."""
    idle: float = 60.0
    """Seconds until the next ticket."""
    age: float = 3600.0
    """Seconds after which a connection takes no further ticket."""


PATIENCE = StrangerLimits()

Refuse: TypeAlias = Callable[[str, str, str], None]
"""Told of a connection that is closed: whose it was, a stable code and a sentence."""


class BoundedTasks:
    """Tasks of which there may be only so many: one more ends the oldest of the largest group.

    Args:
        most: how many.
        ended: called for each that is ended.
    """

    def __init__(self, most: int, ended: Callable[[], None]) -> None:
        self._most = most
        self._ended = ended
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
            self._ended()
        self._tasks[task] = group
        try:
            yield
        finally:
            self._tasks.pop(task, None)


class DataListener:
    """Takes connections, and brings each to the call whose ticket it shows.

    Args:
        limits: what one worker may cost.
        sealed: whether payloads are encrypted; so they should be where calls go over TLS.
        refused: called for each connection that is closed.
        patience: what connections without a payload may cost.
    """

    def __init__(
        self, limits: Limits, sealed: bool, refused: Refuse, patience: StrangerLimits = PATIENCE
    ) -> None:
        self.port = 0
        self._refused = refused
        self._sealed = sealed
        self._patience = patience
        self._streams = limits.streams
        self._threads = ThreadPoolExecutor(THREADS, "varangian-lane")
        self._listeners: list[socket.socket] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._tickets: dict[bytes, DataTicket] = {}
        self._strangers = BoundedTasks(patience.strangers, partial(self._refuse, STRANGER, Refusal.CROWD))
        self._idle: dict[str, BoundedTasks] = {}

    async def listen(self, host: str, port: int) -> int:
        """Take connections from now on; at which port.

        Raises:
            ListenError: that cannot be done there; PortInUse is one.
        """
        self._listeners = bind_sockets(host, port, "server.data_port")
        self.port = int(self._listeners[0].getsockname()[1])
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(BACKLOG)
            self._resume(listener)
        return self.port

    def ticket(self, transfer: AssociatedData) -> DataTicket:
        """For the payload of one call."""
        return DataTicket(transfer, self._sealed, self._tickets)

    async def close(self) -> None:
        """End every connection, also those that are in use, and take no more."""
        for listener in self._listeners:
            self._suspend(listener)
            listener.close()
        self._listeners = []
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
        """One connection at a time, so that those before it come to say something."""
        try:
            connection, (host, *_) = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:
            self._pause_for(listener, error)
            return
        try:
            line = DataConnection(connection, self._threads)
        except OSError:
            connection.close()
            return
        task = asyncio.create_task(self._serve(line, str(host)))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, line))

    def _pause_for(self, listener: socket.socket, error: OSError) -> None:
        """The connection still waits, so to look again at once would be to do nothing else."""
        self._suspend(listener)
        self._pauses[listener] = asyncio.get_running_loop().call_later(PAUSE, self._resume, listener)
        code = errno.errorcode.get(error.errno or 0, "OSError")
        self._refused("new connections", code, error.strerror or str(error))

    def _ended(self, line: DataConnection, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it began."""
        self._tasks.discard(task)
        line.close()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("data port: a connection was given up", exc_info=error)

    async def _serve(self, line: DataConnection, host: str) -> None:
        """One ticket after the other."""
        oldest = asyncio.get_running_loop().time() + self._patience.age
        with self._strangers.one_more(host):
            ticket: DataTicket | None = await self._introduced(line)
        while ticket is not None and await ticket.served(line):
            holder, ticket = ticket.worker, None
            with self._few(holder).one_more(), suppress(OSError):
                left = oldest - asyncio.get_running_loop().time()
                async with asyncio.timeout(min(self._patience.idle, left)):
                    ticket = await self._shown(line, holder)

    def _few(self, holder: str) -> BoundedTasks:
        """The connections that a worker does not use just now."""
        crowded = partial(self._refuse, holder, Refusal.CROWD)
        return self._idle.setdefault(holder, BoundedTasks(self._streams, crowded))

    async def _introduced(self, line: DataConnection) -> DataTicket | None:
        """The first ticket, which also says whose connection it is."""
        try:
            async with asyncio.timeout(self._patience.showing):
                return await self._shown(line, STRANGER)
        except TimeoutError:
            self._refuse(STRANGER, Refusal.SILENT)
        except OSError as error:
            log.debug("data port: a connection ended before it showed a ticket: %s", error)
        return None

    async def _shown(self, line: DataConnection, who: str) -> DataTicket | None:
        """The ticket that comes next; None for anything else."""
        ticket = self._tickets.get(await line.exactly(TICKET))
        if ticket is None:
            self._refuse(who, Refusal.TICKET)
        return ticket

    def _refuse(self, who: str, refusal: Refusal) -> None:
        self._refused(who, refusal.code, refusal.sentence)
