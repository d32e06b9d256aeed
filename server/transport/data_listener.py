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

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.network.descriptors import STRANGERS
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


class Unwelcome(Exception):
    """A connection that has to end: who it is, a stable code and a sentence for the log."""

    def __init__(self, who: str, code: str, sentence: str) -> None:
        self.who, self.code, self.sentence = who, code, sentence
        super().__init__(sentence)


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
        patience: what connections without a payload may cost.
    """

    def __init__(self, limits: Limits, sealed: bool, patience: StrangerLimits = PATIENCE) -> None:
        self.port = 0
        self._sealed = sealed
        self._patience = patience
        self._streams = limits.streams
        self._threads = ThreadPoolExecutor(THREADS, "varangian-lane")
        self._listeners: list[socket.socket] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._tickets: dict[bytes, DataTicket] = {}
        self._strangers = BoundedTasks(patience.strangers, partial(self._crowded, STRANGER))
        self._idle: dict[str, BoundedTasks] = {}
        self._logged = set[tuple[str, str]]()
        self.refusals = Counter[str]()
        """How many connections were closed for each reason but that the other end had gone."""

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
        task = asyncio.create_task(self._attend(line, str(host)))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, line))

    def _pause_for(self, listener: socket.socket, error: OSError) -> None:
        """The connection still waits, so to look again at once would be to do nothing else."""
        self._suspend(listener)
        self._pauses[listener] = asyncio.get_running_loop().call_later(PAUSE, self._resume, listener)
        code = errno.errorcode.get(error.errno or 0, "OSError")
        self._log(Unwelcome("new connections", code, error.strerror or str(error)))

    def _ended(self, line: DataConnection, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it began."""
        self._tasks.discard(task)
        line.close()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("lane: a connection was given up", exc_info=error)

    async def _attend(self, line: DataConnection, host: str) -> None:
        try:
            await self._serve(line, host)
        except Unwelcome as refused:
            self._log(refused)

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
        return self._idle.setdefault(holder, BoundedTasks(self._streams, partial(self._crowded, holder)))

    async def _introduced(self, line: DataConnection) -> DataTicket:
        """The first ticket, which also says whose connection it is."""
        try:
            async with asyncio.timeout(self._patience.showing):
                return await self._shown(line, STRANGER)
        except TimeoutError:
            raise Unwelcome(STRANGER, "SILENT", "It should have shown something by now.") from None
        except OSError as error:
            raise Unwelcome(STRANGER, "GONE", str(error)) from None

    async def _shown(self, line: DataConnection, who: str) -> DataTicket:
        """The ticket that comes next."""
        ticket = self._tickets.get(await line.exactly(TICKET))
        if ticket is None:
            raise Unwelcome(who, "TICKET", "A ticket should be valid, and new.")
        return ticket

    def _crowded(self, who: str) -> None:
        self._log(Unwelcome(who, "CROWD", "There should be fewer connections that are not used."))

    def _log(self, refused: Unwelcome) -> None:
        """The first of each kind from each end; not what honest workers come by."""
        key = refused.who, refused.code
        quiet = key in self._logged or refused.code in ("SILENT", "GONE", "CROWD")
        self.refusals[refused.code] += refused.code != "GONE"
        self._logged.add(key)
        level = logging.DEBUG if quiet else logging.WARNING
        log.log(level, "lane: refused %.70s: %s %r", *key, refused.sentence)
