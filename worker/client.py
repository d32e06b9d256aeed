"""One worker's connection to the server."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
import torch
from torch import Tensor

from varangian import __version__
from varangian.protos import codec, ps_pb2
from varangian.protos.codec import Assembler, Code, CodecError, Contract
from varangian.protos.frames import unframed
from varangian.protos.headers import READY, SESSION, TOKEN, WORKER
from varangian.protos.layout import Layout
from varangian.worker.backoff import DEFAULT_BACKOFF, Backoff
from varangian.worker.channel import Stub, connect
from varangian.worker.refusal import TAKEN, Kind, Refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
Parts: TypeAlias = AsyncIterator[bytes]

DAMAGED = (Code.DIGEST, Code.TOO_FEW_BYTES)
"""What can happen to a download on its way; anything else is a server that speaks otherwise."""


PATIENCE = 3
"""Failures in a row before the log says what is being waited for."""


class Passing(Exception):
    """A call failed in a way that may pass."""


class ClientError(Exception):
    """The server cannot be worked with. Says which, what was tried, and what to do."""


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    reason: str


@dataclass(frozen=True)
class Pulled:
    """The parameters of an open round."""

    round: int
    parameters: Tensor
    """(d,) float32 on the CPU; fresh memory that belongs to the caller."""


@dataclass(frozen=True)
class Receipt:
    """What became of a push."""

    counted: bool
    code: str = ""
    """Why not, as a stable code."""
    sentence: str = ""
    """Why not, in the server's words."""
    round: int | None = None
    """The round that the server was in."""


class Client:
    """The calls of one worker, over a channel of its own. Every call may be repeated without harm.

    Args:
        server: `host:port`.
        name: the worker's name.
        token: what the server made for this name; None where a certificate says who this is.
        layout: the parameters of the worker's model.
        credentials: for TLS; None speaks in clear text.
        backoff: how patiently calls are tried again.
        idle: seconds without any progress after which a call counts as dead. Large models on slow lines
            need no longer: only silence is measured, not the whole transfer.
        sleep: for tests.
    """

    def __init__(
        self,
        server: str,
        name: str,
        token: str | None,
        layout: Layout,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
        idle: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self._server = server
        self._layout = layout
        self._backoff = backoff
        self._idle = idle
        self._sleep = sleep
        proof = () if token is None else ((TOKEN, token),)
        self._identity = ((WORKER, name), *proof, (SESSION, secrets.token_hex(16)))
        self._channel = connect(server, credentials)
        self._stub = Stub(self._channel)
        self._contract = Contract("", layout)
        """Of what comes. What goes may be written in another way."""
        self._sends: codec.Dtype = codec.FLOAT32
        self._chunk_bytes = codec.CHUNK_BYTES

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def join(self) -> int:
        """Agree on protocol, run and layout; returns the round that the server is in.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        reply = await self._persistently("join", self._join)
        self._contract = Contract(reply.run_id, self._layout)
        self._sends = codec.check_dtype(reply.dtype)
        self._chunk_bytes = max(codec.CHUNK_FLOOR, min(reply.chunk_bytes, codec.CHUNK_LIMIT))
        return reply.round

    async def claim(self) -> bool:
        """Join, unless another process speaks for this worker: then False, without waiting for its end.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        return await self._persistently("join", self._claim)

    async def pull(self, after: int) -> Pulled | Finished:
        """The parameters of the first open round later than `after` (-1 for any), as soon as there is one.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        while True:
            answer = await self._persistently("pull the parameters", lambda: self._pull(after))
            if answer is not None:
                return answer

    async def push(self, round: int, vector: Tensor) -> Receipt:
        """Send a float32 vector for a round; it must not change meanwhile.

        A vector that the server does not count is no error: the receipt says why.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        if vector.shape != (self._layout.numel,):
            raise ValueError(
                f"`vector` should have shape ({self._layout.numel},). Found {tuple(vector.shape)}."
            )
        # Both take a while for a large vector, and other workers of this process need the loop.
        payload = await asyncio.to_thread(codec.payload, vector, self._sends)
        digest = await asyncio.to_thread(codec.digest, payload)
        manifest = replace(self._contract, dtype=self._sends).manifest(round, digest)
        return await self._persistently(f"push round {round}", lambda: self._push(manifest, payload))

    async def _persistently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds, cannot succeed, or has been tried often enough."""
        for failures, delay in enumerate(self._backoff.delays(), 1):
            try:
                return await self._once(what, call)
            except Passing as passing:
                level = logging.WARNING if failures == PATIENCE else logging.DEBUG
                log.log(level, "%s yet; trying again. %s", self._failed(what), passing)
            await self._sleep(delay)
        try:
            return await self._once(what, call)
        except Passing as passing:
            tries = f"{self._backoff.tries} tries" if self._backoff.tries > 1 else "1 try"
            raise ClientError(f"{self._failed(what)} after {tries}. {passing}") from None

    async def _once(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except TimeoutError:
            silence = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "", f"silence for {self._idle:g} s", None)
            raise Passing(silence) from None
        except grpc.aio.AioRpcError as error:
            refusal = Refusal.of(error)
            if refusal.kind is Kind.PASSING:
                raise Passing(refusal) from None
            raise ClientError(f"{self._failed(what)}. {refusal}") from None
        except CodecError as error:
            if error.code in DAMAGED:
                raise Passing(error) from None
            raise ClientError(f"{self._failed(what)}. {error}") from None

    def _failed(self, what: str) -> str:
        return f"Worker {self.name} could not {what} at {self._server}"

    async def _join(self) -> ps_pb2.JoinReply:
        request = ps_pb2.JoinRequest(
            protocol=codec.PROTOCOL, layout=self._layout.text, software=f"varangian {__version__}"
        )
        data = await self._stub.join(
            request.SerializeToString(), metadata=self._identity, timeout=self._idle
        )
        reply = codec.decode(ps_pb2.JoinReply, data)
        codec.check_protocol(reply.protocol)
        codec.check_dtype(reply.dtype)
        return reply

    async def _claim(self) -> bool:
        try:
            await self._join()
        except grpc.aio.AioRpcError as error:
            if Refusal.of(error).code == TAKEN:
                return False
            raise
        return True

    async def _pull(self, after: int) -> Pulled | Finished | None:
        """One pull; None when the server says to ask again."""
        request = ps_pb2.PullRequest(run_id=self._contract.run_id, after=after)
        call = self._stub.pull(request.SerializeToString(), metadata=self._identity)
        parts = aiter(call)
        try:
            data = await self._part(parts)
            first = codec.decode(ps_pb2.PullReply, data or b"")
            if data is None or first.HasField("again"):
                return None
            if first.HasField("finished"):
                return Finished(first.finished.reason)
            return await self._download(parts, first.manifest)
        finally:
            call.cancel()

    async def _download(self, parts: Parts, manifest: ps_pb2.Manifest) -> Pulled | None:
        self._contract.check(manifest)
        parameters = torch.empty(self._layout.numel, dtype=torch.float32)
        row = codec.payload(parameters)
        assembler = Assembler(len(row), manifest.content_digest)
        while (data := await self._part(parts)) is not None:
            found = unframed(data)
            if found is None:
                part = codec.decode(ps_pb2.PullReply, data)
                if part.HasField("again"):
                    return None
                found = part.chunk.offset, memoryview(part.chunk.data)
            chunk = assembler.add(*found)
            row[assembler.passed - len(chunk) : assembler.passed] = chunk
        assembler.finish()
        return Pulled(manifest.round, parameters)

    async def _part(self, parts: Parts) -> bytes | None:
        """The next message of a pull; None at its end."""
        async with asyncio.timeout(self._idle):
            return await anext(parts, None)

    async def _push(self, manifest: ps_pb2.Manifest, payload: memoryview) -> Receipt:
        call = self._stub.push(metadata=self._identity)
        try:
            reply = await self._upload(call, manifest, payload)
        except grpc.aio.AioRpcError as error:
            refusal = Refusal.of(error)
            if refusal.kind is not Kind.ANSWER:
                raise
            return Receipt(False, refusal.code, refusal.sentence, refusal.round)
        finally:
            call.cancel()
        return Receipt(True, round=reply.round)

    async def _upload(self, call: Any, manifest: ps_pb2.Manifest, payload: memoryview) -> ps_pb2.PushReply:
        # Writing to a call that the server has ended fails with an error of gRPC's own; what the server
        # said is the result of the call.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._write(call, ps_pb2.PushRequest(manifest=manifest).SerializeToString())
            async with asyncio.timeout(self._idle):
                greeting = await call.initial_metadata()
            if READY in greeting:
                for message in codec.chunks(payload, self._chunk_bytes):
                    await self._write(call, message)
                await call.done_writing()
        async with asyncio.timeout(self._idle):
            return codec.decode(ps_pb2.PushReply, await call)

    async def _write(self, call: Any, message: bytes) -> None:
        async with asyncio.timeout(self._idle):
            await call.write(message)
