"""Uploads at a worker: a vector as messages or as bytes, sent over gRPC or on a data connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import torch
import xxhash
from torch import Tensor

from varangian.aggregators.kernels.ingress import store_numbers
from varangian.protos import ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import DataConnection, Transfer
from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.messages import MANIFEST_LIMIT, decode_message
from varangian.protos.metadata_keys import READY
from varangian.protos.network.chunk_size import ChunkSize
from varangian.protos.network.idle_timeout import IdleTimeout, idle_timeout
from varangian.protos.payloads.chunks import encode_chunk, encode_inline
from varangian.protos.payloads.encoding import FLOAT32, Encoding, encode_vector, payload_digest
from varangian.protos.payloads.int8_blocks import BLOCK as NUMBERS
from varangian.protos.payloads.int8_blocks import encode_blocks
from varangian.worker.transport.payloads.data_channel import LeasedConnection

BLOCK = 1 << 20
"""Bytes at once: few calls, and still in cache when they are sent."""


class PieceMemory:
    """Memory for the pieces of one attempt to send a vector.

    A thread may still be busy for a moment with an attempt that was given up, so the next one has another.
    """

    def __init__(self) -> None:
        self._made = torch.empty(0, dtype=torch.uint8, device="cpu")

    def of(self, size: int) -> Tensor:
        """So many bytes of it."""
        if len(self._made) < size:
            self._made = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._made[:size]


class Outgoing:
    """A vector as the bytes that are sent. It must not change meanwhile.

    It is processed piece by piece: converted, put into a message and hashed while it is in cache.

    Args:
        vector: (d,).
        encoding: of its numbers.
        seed: of their roundings, if they are random: with the same one the bytes are the same.
    """

    def __init__(self, vector: Tensor, encoding: Encoding, seed: int) -> None:
        self.encoding = encoding
        self._seed = seed
        self.digest = b""
        """Known once all of it was hashed."""
        self._flat = vector.detach().to("cpu", torch.float32).contiguous()

    @property
    def size(self) -> int:
        return self.encoding.size

    def piece(self, start: int, stop: int, memory: PieceMemory) -> memoryview:
        """These bytes, which last until the next piece is made in this memory."""
        stop = min(stop, self.size)
        if self.encoding.dtype == FLOAT32:
            return encode_vector(self._flat)[start:stop]
        first, last = self.encoding.columns(start), self.encoding.reached(stop)
        base = self.encoding.offset(first)
        made = memory.of(self.encoding.offset(last) - base)
        self._make(first, last, made)
        return made.numpy().data[start - base : stop - base]

    def _make(self, first: int, last: int, to: Tensor) -> None:
        """Write the units of these columns."""
        border = min(max(first, self.encoding.rounded), last)
        size = self.encoding.offset(border) - self.encoding.offset(first)
        numbers, exact = self._flat[first:border], self._flat[border:last]
        if self.encoding.dtype == "int8":
            encode_blocks(numbers.numpy(), first // NUMBERS, self._seed, to[:size].numpy())
        else:
            # Faster than torch. The server would make zeros of subnormal numbers anyway.
            store_numbers(encode_vector(numbers), 0, FLOAT32, to[:size].view(torch.bfloat16))
        to[size:] = exact.view(torch.uint8)

    def compute_digest(self) -> None:
        """Compute the digest without sending anything."""
        hashed, memory = xxhash.xxh3_128(), PieceMemory()
        for start in range(0, self.size, BLOCK):
            hashed.update(self.piece(start, start + BLOCK, memory))
        self.digest = hashed.digest()

    def inline(self, contract: Contract, round: int) -> bytes:
        """One message with all of it and a manifest that has the digest."""
        piece = self.piece(0, self.size, PieceMemory())
        self.digest = self.digest or payload_digest(piece)
        manifest = ps_pb2.PushRequest(manifest=contract.manifest(round, self.digest))
        return encode_inline(manifest.SerializeToString(), piece)

    def messages(self, pace: ChunkSize) -> Iterator[bytes]:
        """All chunks, each as large as it should be by then, and a seal if there was no digest before."""
        hashed, at, memory = xxhash.xxh3_128(), 0, PieceMemory()
        while at < self.size:
            piece = self.piece(at, at + pace.size, memory)
            message = encode_chunk(at, piece)
            if not self.digest:
                hashed.update(memoryview(message)[-len(piece) :])
            yield message
            at += len(piece)
        if not self.digest:
            self.digest = hashed.digest()
            yield self.seal()

    def pieces(self) -> Iterator[memoryview]:
        """All of it without messages. Afterwards the digest is known."""
        hashed, memory = xxhash.xxh3_128(), PieceMemory()
        for start, stop in PAYLOADS.pieces(self.size, BLOCK):
            piece = self.piece(start, stop, memory)
            if not self.digest:
                hashed.update(piece)
            yield piece
        self.digest = self.digest or hashed.digest()

    def seal(self) -> bytes:
        """The last message of a push whose manifest had no digest."""
        return ps_pb2.PushRequest(seal=ps_pb2.Seal(content_digest=self.digest)).SerializeToString()


async def upload(
    call: Any,
    worker: str,
    manifest: ps_pb2.Manifest,
    outgoing: Outgoing,
    pace: ChunkSize,
    idle: float,
    leased: LeasedConnection,
) -> ps_pb2.PushReply:
    """Send the manifest, wait until the server is ready, and send the payload as it asks.

    Raises:
        TimeoutError: the server takes nothing for `idle` seconds.
        AioRpcError: the server refuses.
        DataConnectionError: the connection failed and the call did not.
        Refused: the server does not keep to the protocol.
    """
    async with idle_timeout(idle) as timer:
        # Writing to a call that the server has ended fails with an error of gRPC's own; what the server
        # said is the result of the call.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await timer.wait(call.write(ps_pb2.PushRequest(manifest=manifest).SerializeToString()))
            ready = (await timer.wait(call.initial_metadata())).get(READY)
            if ready is not None:
                if (shown := leased.parse_ready(ready)) is None:
                    await _send_chunks(call, outgoing, pace, timer)
                    await call.done_writing()
                else:
                    described = AssociatedData.of("push", manifest, worker, outgoing.size)
                    await _send_beside(
                        call, outgoing, partial(shown.show, transfer=described), timer, leased
                    )
        return decode_message(ps_pb2.PushReply, await timer.wait(call), MANIFEST_LIMIT)


async def _send_chunks(call: Any, outgoing: Outgoing, pace: ChunkSize, timer: IdleTimeout) -> None:
    for message in outgoing.messages(pace):
        began = monotonic()
        await timer.wait(call.write(message))
        pace.record(len(message), monotonic() - began)


async def _send_beside(
    call: Any,
    outgoing: Outgoing,
    show: Callable[[DataConnection], Awaitable[None]],
    timer: IdleTimeout,
    leased: LeasedConnection,
) -> None:
    """Send the payload beside the call, and its digest if the manifest had none."""
    promised = bool(outgoing.digest)

    async def carry(connection: DataConnection) -> None:
        await timer.wait(show(connection))
        transfer = Transfer(outgoing.pieces())
        while not transfer.done:
            await timer.wait(connection.ready())
            await connection.send(transfer)

    over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    call.add_done_callback(lambda _: None if over.done() else over.set_result(True))
    if await leased.carry(carry, over):
        if not promised:
            await timer.wait(call.write(outgoing.seal()))
        await call.done_writing()
        await leased.wait_until_arrived(over, timer)
        await leased.wait_for_answer(over, timer)
