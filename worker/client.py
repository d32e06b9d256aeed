"""One worker's connection to the server."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
import torch
from torch import Tensor

from varangian import __version__
from varangian.protos import codec, ps_pb2, ps_pb2_grpc
from varangian.protos.codec import Assembler, Code, CodecError, Contract
from varangian.protos.headers import READY, SESSION, TOKEN, WORKER
from varangian.protos.layout import Layout
from varangian.worker.backoff import DEFAULT_BACKOFF, Backoff
from varangian.worker.refusal import TAKEN, Kind, Refusal

log = logging.getLogger(__name__)
T = TypeVar("T")
Parts: TypeAlias = AsyncIterator[ps_pb2.PullReply]

OPTIONS = (
    ("grpc.max_receive_message_length", codec.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", codec.MESSAGE_LIMIT),
    # Tries are counted and explained here; gRPC would repeat calls in silence.
    ("grpc.enable_retries", 0),
    # A connection is an identity: two workers of one process must not share it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
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
        self._channel = _channel(server, credentials)
        self._stub: Any = ps_pb2_grpc.ParameterServerStub(self._channel)  # type: ignore[no-untyped-call]
        self._contract = Contract("", layout)
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
        self._chunk_bytes = max(codec.CHUNK_FLOOR, min(reply.chunk_bytes, codec.CHUNK_BYTES))
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
        payload = codec.payload(vector)
        digest = await asyncio.to_thread(codec.digest, payload)
        manifest = self._contract.manifest(round, digest)
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
        reply: ps_pb2.JoinReply = await self._stub.Join(
            request, metadata=self._identity, timeout=self._idle
        )
        codec.check_protocol(reply.protocol)
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
        call = self._stub.Pull(request, metadata=self._identity)
        parts = aiter(call)
        try:
            first = await self._part(parts)
            if first is None or first.HasField("again"):
                return None
            if first.HasField("finished"):
                return Finished(first.finished.reason)
            return await self._download(parts, first.manifest)
        finally:
            call.cancel()

    async def _download(self, parts: Parts, manifest: ps_pb2.Manifest) -> Pulled | None:
        self._contract.check(manifest)
        parameters = torch.empty(self._layout.numel, dtype=torch.float32)
        assembler = Assembler(codec.payload(parameters), manifest.content_digest)
        while (part := await self._part(parts)) is not None:
            if part.HasField("again"):
                return None
            assembler.add(part.chunk.offset, part.chunk.data)
        assembler.finish()
        return Pulled(manifest.round, parameters)

    async def _part(self, parts: Parts) -> ps_pb2.PullReply | None:
        """The next message of a pull; None at its end."""
        async with asyncio.timeout(self._idle):
            return await anext(parts, None)

    async def _push(self, manifest: ps_pb2.Manifest, payload: memoryview) -> Receipt:
        call = self._stub.Push(metadata=self._identity)
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
            await self._write(call, ps_pb2.PushRequest(manifest=manifest))
            async with asyncio.timeout(self._idle):
                greeting = await call.initial_metadata()
            if READY in greeting:
                for chunk in codec.chunks(payload, self._chunk_bytes):
                    await self._write(call, ps_pb2.PushRequest(chunk=chunk))
                await call.done_writing()
        async with asyncio.timeout(self._idle):
            reply: ps_pb2.PushReply = await call
        return reply

    async def _write(self, call: Any, part: ps_pb2.PushRequest) -> None:
        async with asyncio.timeout(self._idle):
            await call.write(part)


def _channel(server: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(server, options=OPTIONS)
    return grpc.aio.secure_channel(server, credentials, options=OPTIONS)
