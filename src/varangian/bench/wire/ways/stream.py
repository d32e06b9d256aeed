"""A gRPC stream of raw bytes, copied into the row: nothing is checked or counted.

Varangian's own stream of chunks is built like this, so what it takes beyond this is the cost of its checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from varangian.bench.wire.ways.background import Background
from varangian.bench.wire.ways.base import Floats, Job, Pushing, RowServer
from varangian.bench.wire.ways.unary import OPTIONS, SERVICE
from varangian.protos.messages import CHUNK_BYTES
from varangian.protos.network.dial import open_aio_channel
from varangian.protos.network.malloc import keep_large_blocks

METHOD = "Stream"
LOCAL = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))


class Server(RowServer):
    """Copies pieces into their row."""

    def __init__(self, job: Job) -> None:
        keep_large_blocks()
        super().__init__(job)
        self._background = Background()
        self._background.run(self._start())

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        handler: Any = grpc.stream_unary_rpc_method_handler(self._push)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def _push(self, pieces: AsyncIterator[bytes], context: object) -> bytes:
        worker = int.from_bytes(await anext(pieces), "little")
        row, at = self._rows[worker].data.cast("B"), 0
        async for piece in pieces:
            row[at : at + len(piece)] = piece
            at += len(piece)
        return b""

    def close(self) -> None:
        self._background.run(self._server.stop(None))
        self._background.close()


class Workers:
    """A channel for each, on one event loop."""

    def __init__(self, address: str, job: Job) -> None:
        keep_large_blocks()
        self._vectors = job.vectors()
        self._runner = asyncio.Runner()
        self._runner.run(self._connect(address))

    async def _connect(self, address: str) -> None:
        self._channels = [open_aio_channel(address, options=LOCAL) for _ in self._vectors]
        self._calls: list[Any] = [
            channel.stream_unary(f"/{SERVICE}/{METHOD}") for channel in self._channels
        ]

    def round(self) -> None:
        self._runner.run(self._send_all())

    async def _send_all(self) -> None:
        await asyncio.gather(*(self._send(i, vector) for i, vector in enumerate(self._vectors)))

    async def _send(self, i: int, vector: Floats) -> None:
        call, data = self._calls[i](), vector.data.cast("B")
        await call.write(i.to_bytes(4, "little"))
        for at in range(0, len(data), CHUNK_BYTES):
            await call.write(bytes(data[at : at + CHUNK_BYTES]))
        await call.done_writing()
        await call

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._runner.run(self._close_channels())
        self._runner.close()

    async def _close_channels(self) -> None:
        for channel in self._channels:
            await channel.close()


class Stream(Pushing):
    """Raw bytes over `grpc.aio`."""

    server, workers = Server, Workers
