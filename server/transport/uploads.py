"""Uploads at the server: the payload of a push, from the call or a data connection into its slot.

Every wait for the other end has an idle time-out, and no message is kept: its payload goes into the slot
from where the transport has put it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.data_channel.connection import TURN_BYTES
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.errors import Refused
from varangian.protos.messages import CHUNK_LIMIT, MANIFEST_LIMIT
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.payloads.chunks import push_payload
from varangian.protos.refusals import Refusal
from varangian.server.limits.limits import Limits
from varangian.server.limits.quotas import TokenBucket
from varangian.server.limits.upload_scheduler import UploadScheduler, UploadTurn
from varangian.server.observability.traffic import Traffic
from varangian.server.rows.slot import Slot
from varangian.server.transport import calls
from varangian.server.transport.calls import Call

LARGE, LARGEST = 2 << 20, CHUNK_LIMIT
"""Sizes of a push's messages in bytes: each costs some 0.3 ms of both ends."""
SMALL = 64 << 10
"""Bytes below which a message costs more than it brings."""
SMALL_PER_SECOND, SMALL_AT_ONCE = 50.0, 64.0
"""Small messages that a stream may bring; if it brings more, they are read later and not refused."""


def message_bytes(payload: int, workers: int) -> int:
    """The size that messages of a push should have.

    gRPC keeps memory to read into for every connection, about twice what it has seen come at once. For a
    few workers that is little beside their rows; for many it is not, and their messages are smaller.
    """
    return LARGEST if 4 * workers * LARGEST <= payload else LARGE


async def read_manifest(call: Call, idle: float, payload: int) -> ps_pb2.PushRequest:
    """The first message of a push, whatever it says: the manifest, alone or with all of a small payload.

    Args:
        call: of the worker.
        idle: seconds to wait.
        payload: bytes that may come with the manifest.

    Raises:
        Refused: when it is something else, or does not come.
    """
    first = await calls.read_request(ps_pb2.PushRequest, call, idle, MANIFEST_LIMIT + payload)
    if not first.HasField("manifest"):
        raise Refused(Refusal.MALFORMED, "Found a push that does not begin with a manifest.")
    return first


class Upload:
    """The payload of one push.

    Args:
        slot: where it goes.
        call: where it comes from, or which it belongs to.
        scheduler: gives turns to uploads.
        limits: how long to wait.
        alive: called at each message.
        traffic: counts the bytes that come.
        ticket: for a payload that comes beside the call.
    """

    def __init__(
        self,
        slot: Slot,
        call: Call,
        scheduler: UploadScheduler,
        limits: Limits,
        alive: Callable[[], None],
        traffic: Traffic,
        ticket: DataTicket | None = None,
    ) -> None:
        self._slot = slot
        self._ticket = ticket
        self._call = call
        self._upload_scheduler = scheduler
        self._idle = limits.idle
        self._alive = alive
        self._received = traffic.received
        self._small = TokenBucket(SMALL_PER_SECOND, SMALL_AT_ONCE)

    async def receive(self, digest: bytes) -> bytes:
        """Fill the slot; returns the digest of what came.

        Args:
            digest: what the manifest promised, or nothing if a seal is to follow.

        Raises:
            Refused: when it is not what was promised, or does not come.
            Overtaken: when nobody waits for it any more.
        """
        found = digest
        async with self._upload_scheduler.turn() as turn, calls.idle_timeout(self._idle) as timer:
            ready = self._ticket.text if self._ticket else metadata_keys.CHUNKS
            with calls.cancel_if_gone():
                await self._call.send_initial_metadata(((metadata_keys.READY, ready),))
            if self._ticket:
                with calls.refuse_if_cut():
                    await self._receive_beside(self._ticket, turn, timer)
            while (data := await self._read_message(turn, timer)) is not None:
                part = push_payload(data)
                # Both would live on until the next message is here, and that may be many turns later.
                del data
                if isinstance(part, tuple):
                    await self._receive_chunk(*part, turn)
                elif found:
                    raise Refused(Refusal.MALFORMED, "Found a digest where the push has one already.")
                else:
                    self._slot.sink.finish(found := part)
                del part
        self._slot.sink.finish(found)
        return found

    async def _read_message(self, turn: UploadTurn, timer: IdleTimeout) -> bytes | None:
        await turn.before_read()
        data = await timer.wait(self._call.read())
        await turn.after_read(0 if data is None else len(data))
        self._alive()
        return data

    async def _receive_chunk(self, offset: int, payload: memoryview, turn: UploadTurn) -> None:
        self._slot.sink.check(offset, payload)
        if not self._slot.has_room(len(payload)):
            turn.release()  # the uploads that it waits for may need one
        self._received["grpc"] += len(payload)
        await self._slot.put(payload)
        await self._slow_down(len(payload), turn)

    async def _receive_beside(self, ticket: DataTicket, turn: UploadTurn, timer: IdleTimeout) -> None:
        """Receive all of the payload on the data connection whose other end has the ticket."""
        await turn.before_read()
        connection = await timer.wait(ticket.connection())
        while not self._slot.full:
            await turn.before_read()
            await timer.wait(connection.ready())
            if not self._slot.has_room():
                turn.release()  # the uploads that it waits for may need one
                await self._slot.wait_for_room()
            await turn.after_read(0)
            self._slot.check()
            came = await connection.receive(min(self._slot.free_bytes, TURN_BYTES), self._slot.sink.fill)
            self._received["data"] += came
            await turn.after_read(came)
            self._slot.report_progress()
            self._alive()
            await self._slow_down(came, turn)
        ticket.complete()

    async def _slow_down(self, size: int, turn: UploadTurn) -> None:
        """Let other uploads go on first when a message was small."""
        if size < SMALL and not self._slot.full and (delay := self._small.take()):
            turn.release()
            await asyncio.sleep(delay)
