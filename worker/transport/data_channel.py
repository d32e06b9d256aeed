"""A worker's connections beside gRPC, for payloads, and when to do without.

They are never needed: where the port of the server cannot be reached, payloads travel as chunks over gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias

import grpc.aio

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection, DataConnectionError
from varangian.protos.data_channel.encrypted_stream import KEY, why_unavailable
from varangian.protos.errors import Refused
from varangian.protos.metadata_keys import CHUNKS, LANE
from varangian.protos.network.address import split_address
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.refusals import Blame, Refusal
from varangian.worker.transport.data_connection import Connected, open_connection
from varangian.worker.transport.errors import FailedCall

log = logging.getLogger(__name__)

KEPT = 2
"""Unused lines; a server keeps no more either."""
PAUSE = 60.0
"""Seconds of chunks after which lines are tried again."""
ENOUGH = 2
"""Calls in a row whose line failed."""
GRACE = 1.0
"""Seconds in which a server that has hung up says why."""
LOOK = 0.1
"""Seconds between two looks at what has arrived."""
SILENT = "it does not answer"
PORTS = 65535
HEX = re.compile("[0-9a-f]+")

Payload: TypeAlias = Callable[[DataConnection], Coroutine[Any, Any, None]]
"""Shows the ticket on a line, and then moves all bytes."""


@dataclass(frozen=True)
class Shown:
    """What a call was told: the ticket of its payload, and its key if it is to be encrypted."""

    ticket: bytes
    key: bytes = field(repr=False)

    async def on(self, line: DataConnection, transfer: AssociatedData) -> None:
        """Show the ticket; this payload is next."""
        await line.write(self.ticket)
        line.begin(self.key, transfer)


class LeasedConnection:
    """What one call has of the lane: a line, or none."""

    def __init__(
        self, connected: Connected | None, sealed: bool, another: Callable[[], Awaitable[Connected]]
    ) -> None:
        self.connected = connected
        self._size = TICKET + KEY * sealed
        self._another = another
        self.begun = self.complete = False

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the call says about it."""
        return () if self.connected is None else ((LANE, "1"),)

    def shown(self, ready: str | bytes | None) -> Shown | None:
        """What the server has made of it; None when it wants chunks.

        Raises:
            Refused: it wants something else.
        """
        if ready is None or ready == CHUNKS:
            return None
        asked = self.connected is not None
        if not (asked and isinstance(ready, str) and len(ready) == 2 * self._size and HEX.fullmatch(ready)):
            # Nothing of a key is shown.
            found = f"Found {ready!r:.33} where a ticket of {self._size} bytes should be."
            raise Refused(Refusal.MALFORMED, found)
        told = bytes.fromhex(ready)
        return Shown(told[:TICKET], told[TICKET:])

    async def carry(self, payload: Payload, over: asyncio.Future[bool]) -> bool:
        """Move a payload; False when the call says that nothing comes of it.

        Args:
            payload: does that.
            over: done when the call is, and whether that was before its time.

        Raises:
            DataConnectionError: the connection has failed, and the call knows of nothing.
        """
        self.begun = True
        moving: asyncio.Future[Any] = asyncio.ensure_future(self._moved(payload))
        try:
            await asyncio.wait([moving, over], return_when=asyncio.FIRST_COMPLETED)
            if not moving.done() and not over.result():
                await asyncio.wait({moving})
            if moving.done() and isinstance(moving.exception(), DataConnectionError):
                # Either it broke, or the server hung up: then it says why.
                await asyncio.wait({over}, timeout=GRACE)
            if over.done() and over.result():
                return False
            moving.result()
            self.complete = True
            return True
        finally:
            await ended(moving)

    async def sunk(self, over: asyncio.Future[bool], timer: IdleTimeout) -> None:
        """Return when nothing of the payload is under way any more, the line broke, or the call is done.

        The system takes megabytes at once, and a slow line may need longer for them than any silence lasts.
        """
        connected = self.connected
        while connected and (left := connected.unsent) and not (over.done() or connected.broken):
            await timer.wait(_less(connected, left, over))

    async def answered(self, over: asyncio.Future[bool], timer: IdleTimeout) -> None:
        """Return when the call has its answer.

        Raises:
            DataConnectionError: it broke after all was sent, perhaps before it arrived, and nobody says so.
        """
        assert self.connected is not None
        heard: asyncio.Future[Any] = asyncio.ensure_future(self.connected.line.wait_readable())
        try:
            await timer.wait(asyncio.wait([heard, over], return_when=asyncio.FIRST_COMPLETED))
            if not over.done() and self.connected.broken:
                await asyncio.wait({over}, timeout=GRACE)
                if not over.done():
                    raise DataConnectionError("The connection broke before all that was sent had arrived.")
            await timer.wait(asyncio.wait({over}))
        finally:
            await ended(heard)

    async def _moved(self, payload: Payload) -> None:
        assert self.connected is not None
        if not self.connected.usable:
            # The call has waited for long; a server ends lines that nobody uses.
            self.connected.close()
            try:
                self.connected = await self._another()
            except OSError as error:
                raise DataConnectionError(str(error) or SILENT) from None
        await payload(self.connected.line)
        self.connected.served()


class DataChannel:
    """All lines of a worker. One is taken for each call, and kept for the next.

    Args:
        server: `host:port` of gRPC; the host is the same.
        sealed: whether payloads have to be encrypted; so they have where calls go over TLS.
    """

    def __init__(self, server: str, sealed: bool) -> None:
        where = split_address(server)
        self._host = where[0] if where else ""
        self._port = 0
        self._sealed = sealed
        self._unused: list[Connected] = []
        self._failures = 0
        self._paused = float("-inf")
        """Until then there are only chunks."""
        self._told = False

    def at(self, port: int) -> None:
        """Where the server listens; 0 for nowhere."""
        if port != self._port:
            self.close()
            self._port = port if self._host and port <= PORTS else 0
            self._paused, self._told = float("-inf"), False

    def close(self) -> None:
        """Lines in use are closed when their calls end."""
        for connected in self._unused:
            connected.close()
        self._unused = []

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[LeasedConnection, None]:
        """For one call."""
        use, kept = LeasedConnection(await self._taken(), self._sealed, self._opened), self._unused
        try:
            yield use
            if use.complete:
                self._failures, self._told = 0, False
        except Exception as error:
            if use.begun and (found := against(error)):
                use.complete = False
                self._failed(found)
            raise
        finally:
            if use.connected is not None:
                # All lines may have been left meanwhile.
                if (use.complete or not use.begun) and kept is self._unused:
                    self._keep(use.connected)
                else:
                    use.connected.close()

    async def _taken(self) -> Connected | None:
        for connected in [connected for connected in self._unused if not connected.usable]:
            self._unused.remove(connected)
            connected.close()
        if self._unused:
            return self._unused.pop()
        if not self._port or monotonic() < self._paused:
            return None
        with suppress(OSError):
            return await self._opened()
        return None

    def _keep(self, connected: Connected) -> None:
        self._unused.append(connected)
        for old in self._unused[:-KEPT]:
            old.close()
        del self._unused[:-KEPT]

    def _failed(self, found: str) -> None:
        self._failures += 1
        if self._failures == ENOUGH:
            self._failures = 0
            self._pause(found)

    def _pause(self, found: str) -> None:
        self._paused = monotonic() + PAUSE
        if not self._told:
            self._told = True
            log.info("payloads travel over gRPC: data port %d of %s: %s", self._port, self._host, found)

    async def _opened(self) -> Connected:
        """A new line.

        Raises:
            OSError: there is none, nor will it be tried again soon.
        """
        try:
            if self._sealed and (lacking := why_unavailable()):
                raise OSError(lacking)
            return await open_connection(self._host, self._port)
        except OSError as error:
            self._pause(against(error))
            raise


def against(error: Exception) -> str:
    """What an error says of the lane; nothing where the server, or another worker, is to blame.

    Both connections may break because the payload leaves no room for anything else on their way.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error) or SILENT
    failed = FailedCall.of(error)
    if failed.code and (failed.refusal is None or failed.refusal.blame is not Blame.NETWORK):
        return ""
    return failed.sentence or SILENT


async def ended(task: asyncio.Future[Any]) -> None:
    """Wait until it uses nothing any more; what it raised is known or of no interest."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _less(connected: Connected, left: int, over: asyncio.Future[bool]) -> None:
    """Return when some of it has arrived."""
    while connected.unsent >= left and not (over.done() or connected.broken):
        await asyncio.wait({over}, timeout=LOOK)
