"""The data channel of a worker: its connections for payloads, and the fallback to gRPC.

Where the data port of the server cannot be reached, payloads travel as chunks over gRPC.
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
from varangian.protos.metadata_keys import CHUNKS, DATA_CHANNEL
from varangian.protos.network.address import split_address
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.refusals import Blame, Refusal
from varangian.structured_logs import event
from varangian.worker.transport.errors import FailedCall
from varangian.worker.transport.payloads.data_connection import OpenConnection, open_connection

log = logging.getLogger(__name__)

MOST_UNUSED = 2
"""Unused connections that are kept; a server keeps no more either."""
RETRY_INTERVAL = 60.0
"""Seconds of chunks over gRPC after which data connections are tried again."""
MOST_FAILURES = 2
"""Calls in a row whose data connection failed, after which there is a pause."""
REFUSAL_WAIT = 1.0
"""Seconds for which a server that has hung up is given to say why."""
POLL = 0.1
"""Seconds between two looks at how much has arrived."""
SILENT = "it does not answer"
PORTS = 65535
HEX = re.compile("[0-9a-f]+")

Payload: TypeAlias = Callable[[DataConnection], Coroutine[Any, Any, None]]
"""Shows the ticket on a connection, and then moves all bytes."""


@dataclass(frozen=True)
class ShownTicket:
    """The ticket of a call's payload, and its key if it is to be encrypted."""

    ticket: bytes
    key: bytes = field(repr=False)

    async def show(self, connection: DataConnection, transfer: AssociatedData) -> None:
        """Show the ticket on a connection; the payload comes next."""
        await connection.write(self.ticket)
        connection.begin(self.key, transfer)


class LeasedConnection:
    """The data connection that one call has leased, if there is one."""

    def __init__(
        self,
        connected: OpenConnection | None,
        encrypted: bool,
        another: Callable[[], Awaitable[OpenConnection]],
    ) -> None:
        self.connected = connected
        self._size = TICKET + KEY * encrypted
        self._another = another
        self.started = self.complete = False

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The header with which the call offers to use it."""
        return () if self.connected is None else ((DATA_CHANNEL, "1"),)

    def parse_ready(self, ready: str | bytes | None) -> ShownTicket | None:
        """Parse the server's answer to the offer; None when it wants chunks.

        Raises:
            Refused: it is no answer.
        """
        if ready is None or ready == CHUNKS:
            return None
        asked = self.connected is not None
        if not (asked and isinstance(ready, str) and len(ready) == 2 * self._size and HEX.fullmatch(ready)):
            # Nothing of a key is shown.
            found = f"Found {ready!r:.33} where a ticket of {self._size} bytes should be."
            raise Refused(Refusal.MALFORMED, found)
        secret = bytes.fromhex(ready)
        return ShownTicket(secret[:TICKET], secret[TICKET:])

    async def carry(self, payload: Payload, over: asyncio.Future[bool]) -> bool:
        """Move a payload; False when the call ends it.

        Args:
            payload: shows the ticket and moves the bytes.
            over: done with the call; true if the payload is of no use any more.

        Raises:
            DataConnectionError: the connection has failed, and the call has not.
        """
        self.started = True
        moving: asyncio.Future[Any] = asyncio.ensure_future(self._move(payload))
        try:
            await asyncio.wait([moving, over], return_when=asyncio.FIRST_COMPLETED)
            if not moving.done() and not over.result():
                await asyncio.wait({moving})
            if moving.done() and isinstance(moving.exception(), DataConnectionError):
                # Either it broke, or the server hung up: then it says why.
                await asyncio.wait({over}, timeout=REFUSAL_WAIT)
            if over.done() and over.result():
                return False
            moving.result()
            self.complete = True
            return True
        finally:
            await cancel_and_wait(moving)
            del moving, over  # an error that they hold, and that has come through here, would hold them

    async def wait_until_arrived(self, over: asyncio.Future[bool], timer: IdleTimeout) -> None:
        """Wait until all bytes have arrived, the connection broke, or the call is done.

        The system takes megabytes at once, and a slow line may need longer for them than an idle time-out.
        """
        connected = self.connected
        while connected and (left := connected.unsent) and not (over.done() or connected.broken):
            await timer.wait(_wait_for_progress(connected, left, over))

    async def wait_for_answer(self, over: asyncio.Future[bool], timer: IdleTimeout) -> None:
        """Wait for the answer of the call.

        Raises:
            DataConnectionError: it broke after all was sent, perhaps before it arrived, and nobody says so.
        """
        assert self.connected is not None
        readable: asyncio.Future[Any] = asyncio.ensure_future(self.connected.data.wait_readable())
        try:
            await timer.wait(asyncio.wait([readable, over], return_when=asyncio.FIRST_COMPLETED))
            if not over.done() and self.connected.broken:
                await asyncio.wait({over}, timeout=REFUSAL_WAIT)
                if not over.done():
                    raise DataConnectionError("The connection broke before all that was sent had arrived.")
            await timer.wait(asyncio.wait({over}))
        finally:
            await cancel_and_wait(readable)

    async def _move(self, payload: Payload) -> None:
        assert self.connected is not None
        if not self.connected.usable:
            # The call has waited for long; a server closes connections that are not used.
            self.connected.close()
            try:
                self.connected = await self._another()
            except OSError as error:
                raise DataConnectionError(str(error) or SILENT) from None
        await payload(self.connected.data)
        self.connected.end_payload()


class DataChannel:
    """The data connections of a worker: each call leases one, and returns it for the next.

    Args:
        server: `host:port` of gRPC; the host is the same.
        encrypted: whether payloads have to be encrypted, as they have where calls go over TLS.
    """

    def __init__(self, server: str, encrypted: bool) -> None:
        where = split_address(server)
        self._host = where[0] if where else ""
        self._port = 0
        self._encrypted = encrypted
        self._unused: list[OpenConnection] = []
        self._failures = 0
        self._paused = float("-inf")
        """Until then payloads travel as chunks."""
        self._logged = False

    @property
    def port(self) -> int:
        """The data port of the server; 0 if it has none."""
        return self._port

    def set_port(self, port: int) -> None:
        """Set the data port of the server; 0 if it has none."""
        if port != self._port:
            self.close()
            self._port = port if self._host and port <= PORTS else 0
            self._paused, self._logged = float("-inf"), False

    def close(self) -> None:
        """Close unused connections; those in use are closed when their calls end."""
        for connected in self._unused:
            connected.close()
        self._unused = []

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[LeasedConnection, None]:
        """Lease a connection for one call."""
        leased, unused = LeasedConnection(await self._take(), self._encrypted, self._open), self._unused
        try:
            yield leased
            if leased.complete:
                self._failures, self._logged = 0, False
        except Exception as error:
            if leased.started and (found := channel_fault(error)):
                leased.complete = False
                self._note_failure(found)
            raise
        finally:
            if leased.connected is not None:
                # The server may have got another port meanwhile.
                if (leased.complete or not leased.started) and unused is self._unused:
                    self._keep(leased.connected)
                else:
                    leased.connected.close()

    async def _take(self) -> OpenConnection | None:
        for connected in [connected for connected in self._unused if not connected.usable]:
            self._unused.remove(connected)
            connected.close()
        if self._unused:
            return self._unused.pop()
        if not self._port or monotonic() < self._paused:
            return None
        with suppress(OSError):
            return await self._open()
        return None

    def _keep(self, connected: OpenConnection) -> None:
        self._unused.append(connected)
        for old in self._unused[:-MOST_UNUSED]:
            old.close()
        del self._unused[:-MOST_UNUSED]

    def _note_failure(self, found: str) -> None:
        self._failures += 1
        if self._failures == MOST_FAILURES:
            self._failures = 0
            self._pause(found)

    def _pause(self, found: str) -> None:
        self._paused = monotonic() + RETRY_INTERVAL
        if not self._logged:
            self._logged = True
            log.info(
                "payloads travel over gRPC: data port %d of %s: %s",
                self._port,
                self._host,
                found,
                extra=event("payloads_over_grpc"),
            )

    async def _open(self) -> OpenConnection:
        """Open a connection.

        Raises:
            OSError: that failed, and is not tried again for a while.
        """
        try:
            if self._encrypted and (lacking := why_unavailable()):
                raise OSError(lacking)
            return await open_connection(self._host, self._port)
        except OSError as error:
            self._pause(channel_fault(error))
            raise


def channel_fault(error: Exception) -> str:
    """The fault of the data channel, by an error of a call; empty if the error is not its fault.

    Both connections may break because the payload leaves no room for anything else on their way.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error) or SILENT
    failed = FailedCall.of(error)
    if failed.code and (failed.refusal is None or failed.refusal.blame is not Blame.NETWORK):
        return ""
    return failed.sentence or SILENT


async def cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; what it raised is known or of no interest."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _wait_for_progress(connected: OpenConnection, left: int, over: asyncio.Future[bool]) -> None:
    """Wait until more has arrived."""
    while connected.unsent >= left and not (over.done() or connected.broken):
        await asyncio.wait({over}, timeout=POLL)
