"""The parameters on their way from the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.chunks import decode_chunk
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import SHARE, DataConnection, DataConnectionError
from varangian.protos.encoding import encode_vector
from varangian.protos.errors import Refused
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR, MANIFEST_LIMIT, decode_message
from varangian.protos.metadata_keys import READY
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.receiving import PayloadSink
from varangian.protos.refusals import Refusal
from varangian.worker.transport.data_channel import LeasedConnection, ended


class Incoming:
    """Memory for parameters, used again for each download: fresh memory costs as much as the transfer."""

    def __init__(self, numel: int) -> None:
        self._numel = numel
        self._memory: tuple[Tensor, memoryview] | None = None
        """The parameters, and the same as bytes."""
        self.chunk_bytes = CHUNK_FLOOR
        """How large the first chunks should be; 0 on a line that has proved fast enough for any."""

    async def received(
        self, call: Any, worker: str, manifest: ps_pb2.Manifest, timer: IdleTimeout, use: LeasedConnection
    ) -> Tensor | None:
        """The payload of a download; None when the server says to ask again.

        Raises:
            Refused: when it is not what the manifest said.
            TimeoutError: when it does not come.
            DataConnectionError: the connection failed and the call did not.
        """
        began, shown, (parameters, landing) = monotonic(), None, self._landing()
        if use.headers:
            shown = use.shown((await timer.wait(call.initial_metadata())).get(READY))
        if shown is None:
            came = await landing.chunks(call, timer)
        else:
            transfer = AssociatedData.of("pull", manifest, worker, landing.sink.size)
            came = await landing.carried(call, partial(shown.on, transfer=transfer), timer, use)
        if not came:
            return None
        landing.sink.finish(manifest.content_digest)
        self._took(self._numel * 4, monotonic() - began)
        return parameters

    def whole(self, reply: ps_pb2.PullReply) -> Tensor:
        """The payload of a download that came in one message with its manifest.

        Raises:
            Refused: when it is not what the manifest said.
        """
        parameters, landing = self._landing()
        landing.sink.add(0, reply.payload)
        landing.sink.finish(reply.manifest.content_digest)
        return parameters

    def stalled(self) -> None:
        """Nothing came in time: ask for small pieces."""
        self.chunk_bytes = CHUNK_FLOOR

    def _landing(self) -> tuple[Tensor, Landing]:
        if self._memory is None:
            parameters = torch.empty(self._numel, dtype=torch.float32)
            self._memory = parameters, encode_vector(parameters)
        parameters, row = self._memory
        return parameters, Landing(row)

    def _took(self, size: int, seconds: float) -> None:
        """What arrives in a second should be one message, or several."""
        rate = int(size / max(seconds, 1e-3))
        self.chunk_bytes = 0 if rate >= CHUNK_BYTES else max(CHUNK_FLOOR, rate)


class Landing:
    """Where one payload is put, whichever way it comes. False when the server says to ask again."""

    def __init__(self, row: memoryview) -> None:
        self.sink = PayloadSink(len(row), lambda at: row[at:])

    async def chunks(self, call: Any, timer: IdleTimeout) -> bool:
        """Over gRPC."""
        while (data := await message(call, timer)) is not None:
            found = decode_chunk(data)
            if found is None:
                part = decode_message(ps_pb2.PullReply, data, MANIFEST_LIMIT)
                if part.HasField("again"):
                    return False
                found = part.chunk.offset, memoryview(part.chunk.data)
            self.sink.add(*found)
        return True

    async def carried(
        self,
        call: Any,
        show: Callable[[DataConnection], Awaitable[None]],
        timer: IdleTimeout,
        use: LeasedConnection,
    ) -> bool:
        """On a line beside the call."""

        async def carry(line: DataConnection) -> None:
            await timer.wait(show(line))
            while not self.sink.complete:
                await timer.wait(line.ready())
                await line.receive(min(self.sink.size - self.sink.passed, SHARE), self.sink.fill)

        again = asyncio.ensure_future(_again(call))
        try:
            return await use.carry(carry, again) and not await timer.wait(again)
        finally:
            # A thread may still be busy for a moment with a line that was given up.
            self.sink.close(DataConnectionError("It was given up."))
            await ended(again)


async def message(call: Any, timer: IdleTimeout) -> bytes | None:
    """The next message of a pull; None at its end."""
    return await timer.wait(_message(call))


async def _message(call: Any) -> bytes | None:
    data: object = await call.read()
    return data if isinstance(data, bytes) else None


async def _again(call: Any) -> bool:
    """What a call says whose payload travels beside it: its end, or first that there is a newer one."""
    data = await _message(call)
    if data is not None and not decode_message(ps_pb2.PullReply, data, MANIFEST_LIMIT).HasField("again"):
        raise Refused(Refusal.MALFORMED, "Found a message where a download has none.")
    return data is not None
