"""Downloads at a worker: the parameters, from chunks over gRPC or from a data connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TURN_BYTES, DataConnection, DataConnectionError
from varangian.protos.errors import Refused
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR, MANIFEST_LIMIT, decode_message
from varangian.protos.metadata_keys import READY
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.payloads.chunks import decode_chunk
from varangian.protos.payloads.encoding import Parts, encode_vector
from varangian.protos.payloads.receiving import PayloadSink
from varangian.protos.refusals import Refusal
from varangian.worker.transport.payloads.data_channel import LeasedConnection, cancel_and_wait


class Incoming:
    """Memory for parameters, used again for each download: fresh memory costs as much as the transfer."""

    def __init__(self, numel: int) -> None:
        self._numel = numel
        self._memory: tuple[Tensor, memoryview] | None = None
        """The parameters, and the same as bytes."""
        self.have = b""
        """The digest of the parameters that are there as they were pulled; empty if there are none."""
        self.chunk_bytes = CHUNK_FLOOR
        """How large the first chunks should be; 0 on a connection that has proved fast enough for any."""

    async def receive(
        self,
        call: Any,
        worker: str,
        manifest: ps_pb2.Manifest,
        timer: IdleTimeout,
        leased: LeasedConnection,
        slices: Sequence[slice] | None = None,
    ) -> Tensor | None:
        """Receive the payload of a download; None when the server says to ask again.

        Args:
            call: which is on its way.
            worker: whose.
            manifest: what it said of the payload.
            timer: for silence.
            leased: the connection beside it.
            slices: where the numbers of the payload belong, if they are not all.

        Raises:
            Refused: when it is not what the manifest said.
            TimeoutError: when it does not come.
            DataConnectionError: the connection failed and the call did not.
        """
        began, shown, (parameters, row) = monotonic(), None, self._parameters()
        self.have, download = b"", Download(_sink(row, slices))
        if leased.headers:
            shown = leased.parse_ready((await timer.wait(call.initial_metadata())).get(READY))
        if shown is None:
            came = await download.receive_chunks(call, timer)
        else:
            transfer = AssociatedData.of("pull", manifest, worker, download.sink.size)
            came = await download.receive_beside(
                call, partial(shown.show, transfer=transfer), timer, leased
            )
        if not came:
            return None
        if slices is None:
            download.sink.finish(manifest.content_digest)
        else:  # the digest is that of all numbers: those that have come, and those that were there
            await asyncio.to_thread(download.sink.finish, manifest.content_digest, row)
        self.have = manifest.content_digest
        self._set_chunk_size(download.sink.size, monotonic() - began)
        return parameters

    def inline(self, reply: ps_pb2.PullReply, slices: Sequence[slice] | None = None) -> Tensor:
        """The payload of a download that came in one message with its manifest.

        Args:
            reply: the message.
            slices: as of `receive`.

        Raises:
            Refused: when it is not what the manifest said.
        """
        parameters, row = self._parameters()
        self.have = b""
        if slices is not None:
            sink = _sink(row, slices)
            sink.add(0, reply.payload)
            sink.finish(reply.manifest.content_digest, row)
            self.have = reply.manifest.content_digest
            return parameters

        def store(payload: bytes | memoryview) -> None:
            row[:] = payload

        PayloadSink(len(row), lambda at: row[at:]).take_whole(
            reply.payload, reply.manifest.content_digest, store
        )
        self.have = reply.manifest.content_digest
        return parameters

    def stalled(self) -> None:
        """Note that nothing arrived in time: ask for small chunks."""
        self.chunk_bytes = CHUNK_FLOOR

    def _parameters(self) -> tuple[Tensor, memoryview]:
        if self._memory is None:
            parameters = torch.empty(self._numel, dtype=torch.float32)
            self._memory = parameters, encode_vector(parameters)
        return self._memory

    def _set_chunk_size(self, size: int, seconds: float) -> None:
        """Set the size of chunks: what arrives in a second should be one message, or several."""
        rate = int(size / max(seconds, 1e-3))
        self.chunk_bytes = 0 if rate >= CHUNK_BYTES else max(CHUNK_FLOOR, rate)


def _sink(row: memoryview, slices: Sequence[slice] | None) -> PayloadSink:
    """What takes a payload to its place in the parameters."""
    if slices is None:
        return PayloadSink(len(row), lambda at: row[at:])
    parts = Parts(row, slices)
    return PayloadSink(len(parts), parts.rest)


class Download:
    """One payload being received, in either way; False when the server says to ask again."""

    def __init__(self, sink: PayloadSink) -> None:
        self.sink = sink

    async def receive_chunks(self, call: Any, timer: IdleTimeout) -> bool:
        """Receive it as chunks over gRPC."""
        while (data := await message(call, timer)) is not None:
            found = decode_chunk(data)
            if found is None:
                part = decode_message(ps_pb2.PullReply, data, MANIFEST_LIMIT)
                if part.HasField("again"):
                    return False
                found = part.chunk.offset, memoryview(part.chunk.data)
            self.sink.add(*found)
        return True

    async def receive_beside(
        self,
        call: Any,
        show: Callable[[DataConnection], Awaitable[None]],
        timer: IdleTimeout,
        leased: LeasedConnection,
    ) -> bool:
        """Receive it on a data connection beside the call."""

        async def carry(connection: DataConnection) -> None:
            await timer.wait(show(connection))
            while not self.sink.complete:
                await timer.wait(connection.ready())
                await connection.receive(min(self.sink.size - self.sink.passed, TURN_BYTES), self.sink.fill)

        again = asyncio.ensure_future(_wait_for_end(call))
        try:
            return await leased.carry(carry, again) and not await timer.wait(again)
        finally:
            # A thread may still be busy for a moment with a connection that was given up.
            self.sink.close(lambda: DataConnectionError("It was given up."))
            await cancel_and_wait(again)
            del again  # an error that it holds, and that has come through here, would hold it


async def message(call: Any, timer: IdleTimeout) -> bytes | None:
    """The next message of a pull; None at its end."""
    return await timer.wait(_message(call))


async def _message(call: Any) -> bytes | None:
    data: object = await call.read()
    return data if isinstance(data, bytes) else None


async def _wait_for_end(call: Any) -> bool:
    """Wait for the end of a call; True if there is a newer model to ask for."""
    data = await _message(call)
    if data is not None and not decode_message(ps_pb2.PullReply, data, MANIFEST_LIMIT).HasField("again"):
        raise Refused(Refusal.MALFORMED, "Found a message where a download has none.")
    return data is not None
