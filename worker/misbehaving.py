"""Misbehaving worker: a client whose pushes are sent as an attack on the protocol says.

It joins and pulls as an honest client does. Where that would push, the attack sends, over the same
connections. The server cannot tell how it was made; nothing here is known to it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from socket import socket
from typing import Any, cast

import grpc
import grpc.aio
import torch
from torch import Tensor

from varangian.own_classes import is_own, named
from varangian.plugins import guard
from varangian.protos import ps_pb2
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import DataConnectionError
from varangian.protos.data_channel.encrypted_stream import EncryptedStream
from varangian.protos.errors import Refused
from varangian.protos.layout import Layout
from varangian.protos.messages import MANIFEST_LIMIT, PROTOCOL, decode_message
from varangian.protos.metadata_keys import READY, SESSION
from varangian.protos.network.idle_timeout import IdleTimeout, idle_timeout
from varangian.protos.payloads.chunks import encode_chunk, encode_inline
from varangian.protos.payloads.encoding import WIRE, Encoding, payload_digest, rounding_seed
from varangian.structured_logs import event
from varangian.worker.attacks.base import AttackError
from varangian.worker.attacks.on_protocol import Answer, ProtocolAttack, Push
from varangian.worker.seeds import generator
from varangian.worker.transport.attendance import Attendance
from varangian.worker.transport.channel import Connection
from varangian.worker.transport.client import Client, Receipt
from varangian.worker.transport.errors import FailedCall, is_cancelled
from varangian.worker.transport.payloads.data_channel import LeasedConnection, ShownTicket, cancel_and_wait
from varangian.worker.transport.payloads.data_connection import OpenConnection
from varangian.worker.transport.retry import DEFAULT_BACKOFF, Backoff
from varangian.worker.transport.tls import Proof

log = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes at once where there is no pace to keep."""
TICK = 1.0
"""Seconds between two pieces of a payload that is sent slowly."""


class MisbehavingClient(Client):
    """The client of a worker that attacks the protocol; also the `Line` of its attack.

    Args:
        server: `host:port`.
        name: the worker's name.
        proof: its token, or its bundle.
        layout: the parameters of the worker's model.
        attack: sends what this worker pushes.
        seed: of the run.
        common: the text of what this machine should have in common with the server.
        backoff: how patiently calls other than those of the attack are tried again.
    """

    def __init__(
        self,
        server: str,
        name: str,
        proof: Proof,
        layout: Layout,
        *,
        attack: ProtocolAttack,
        seed: int,
        common: str = "",
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> None:
        super().__init__(server, name, proof, layout, common=common, backoff=backoff)
        self.memory: dict[str, Any] = {}
        self.keep: Callable[[int, dict[str, Any]], object] = lambda round, memory: None
        """Called after what was sent for a round, with that round and the memory."""
        self._attack = attack
        self._seed = seed
        self._proof = proof
        self._more: list[Connection] = []
        """Connections beside the first, for pushes at the same time."""
        self._left = False
        self._answers: list[tuple[Push, Answer]] = []
        """Of the round at hand."""
        self.answered = Counter[str]()
        """How often the server has answered a push with each code; without one it counts."""

    async def push(self, round: int, vector: Tensor) -> Receipt:
        """Let the attack send what it wants for a round; the receipt is for the vector that was counted."""
        self._answers = []
        rng = generator(self._seed, "line", self.name, round)
        try:
            await self._mount(round, vector, rng)
        except AttackError as error:
            return Receipt(False, "", str(error))
        finally:
            self.keep(round, self.memory)
        for push, answer in self._answers:
            if answer.counted and push.round == round:
                return Receipt(True, round=round)
        code, sentence = "", "the attack sent nothing"
        if self._answers:
            code, sentence = self._answers[-1][1].code, self._answers[-1][1].sentence
        return Receipt(False, code, sentence)

    async def close(self) -> None:
        told = ", ".join(f"{count} {code or 'counted'}" for code, count in sorted(self.answered.items()))
        log.info(
            "%s: answers of the server to its pushes: %s",
            self.name,
            told or "none",
            extra=event("answers", worker=self.name),
        )
        for connection in self._more:
            await connection.close()
        await super().close()

    def prepare(self, round: int, vector: Tensor) -> Push:
        """The push that an honest worker would send."""
        vector = self._fragment(round, vector)
        numel = vector.numel()
        encoding = Encoding(numel, self._sends.dtype, min(self._sends.exact, numel))
        payload = bytes(encoding.encode(vector, rounding_seed(self.name, round)))
        return Push(
            round=round,
            payload=payload,
            numel=self._encoding(round).numel,
            dtype=WIRE[self._sends.dtype],
            layout=self._layout.digest,
            digest=payload_digest(payload),
        )

    async def send(self, push: Push, *, rate: float | None = None, share: float = 1.0) -> Answer:
        """Send a push, as fast and as much of it as the attack says."""
        return await self._send_on(self._connection, push, rate, share)

    async def send_together(self, pushes: Sequence[Push]) -> list[Answer]:
        """Send several pushes at the same time, each on a connection of its own."""
        while len(self._more) < len(pushes) - 1:
            another = Connection(self._server, self._proof)
            another.data_channel.set_port(self._connection.data_channel.port)
            self._more.append(another)
        on = zip((self._connection, *self._more), pushes, strict=False)
        return await asyncio.gather(*(self._send_on(one, push, None, 1.0) for one, push in on))

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def leave(self) -> None:
        """Hang up, as a process that has ended."""
        self._left = True
        await self._attendance.end()
        for connection in (self._connection, *self._more):
            await connection.close()
        self._more = []

    async def join(self, *, anew: bool = False) -> int:
        """Join; after `leave` on a new connection, and as another process if `anew`."""
        if anew:
            kept = (pair for pair in self._identity if pair[0] != SESSION)
            self._identity = (*kept, (SESSION, secrets.token_hex(16)))
            self._metadata = grpc.aio.Metadata(*self._identity)
            self._attendance = Attendance(self._connection, self._identity)
        if self._left:
            self._left = False
            await self._connection.reconnect()
        return await super().join()

    async def _mount(self, round: int, vector: Tensor, rng: torch.Generator) -> None:
        """Let the attack send; code of the user is guarded.

        Raises:
            AttackError: an attack of the user failed.
        """
        if not is_own(self._attack):
            await self._attack.send(self, round, vector, rng)
            return
        with guard(f"`byzantine.attack` {named(self._attack)!r}", "", named(self._attack), AttackError):
            await self._attack.send(self, round, vector.clone(), rng)

    async def _send_on(
        self, connection: Connection, push: Push, rate: float | None, share: float
    ) -> Answer:
        try:
            answer = await self._transmit(connection, push, rate, share)
        except grpc.aio.AioRpcError as error:
            failed = FailedCall.of(error)
            answer = Answer(failed.code or failed.status.name, failed.sentence)
        except (TimeoutError, DataConnectionError) as error:
            answer = Answer(grpc.StatusCode.UNAVAILABLE.name, str(error) or "the server does not answer")
        except Refused as error:
            answer = Answer(error.refusal.code, str(error))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            answer = Answer(grpc.StatusCode.CANCELLED.name, "the call was cancelled")
        if not self.answered[answer.code]:
            found = f"{answer.code} {answer.sentence}".rstrip() if answer.code else "counted"
            log.info(
                "%s, a push for round %d: %s",
                self.name,
                push.round,
                found,
                extra=event("answer", worker=self.name, round=push.round),
            )
        self.answered[answer.code] += 1
        self._answers.append((push, answer))
        return answer

    async def _transmit(
        self, connection: Connection, push: Push, rate: float | None, share: float
    ) -> Answer:
        """Send a push as an honest one would go; a slow or a broken one never in one message."""
        said = ps_pb2.PushRequest(manifest=self._manifest(push)).SerializeToString()
        if self._in_one_message and rate is None and share >= 1:
            async with asyncio.timeout(self._idle):
                message = encode_inline(said, push.payload)
                data = await connection.calls.push_inline(message, metadata=self._metadata)
            return _answer(data)
        async with connection.calling(connection.calls.push, self._identity) as (call, leased):
            return await self._stream(call, leased, push, rate, share)

    def _manifest(self, push: Push) -> ps_pb2.Manifest:
        return ps_pb2.Manifest(
            protocol=PROTOCOL,
            run_id=self.run,
            round=push.round,
            layout_digest=push.layout,
            dtype=cast("ps_pb2.Dtype", push.dtype),
            numel=push.numel,
            content_digest=push.digest,
        )

    async def _stream(
        self, call: Any, leased: LeasedConnection, push: Push, rate: float | None, share: float
    ) -> Answer:
        """A push as a manifest and what follows it, on the call or beside it."""
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        call.add_done_callback(lambda _: None if over.done() else over.set_result(True))
        manifest = self._manifest(push)
        try:
            async with idle_timeout(self._idle) as timer:
                # Writing to a call that the server has ended fails with an error of gRPC's own; what the
                # server said is the result of the call.
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await timer.wait(call.write(ps_pb2.PushRequest(manifest=manifest).SerializeToString()))
                    ready = (await timer.wait(call.initial_metadata())).get(READY)
                    if ready is not None:
                        await self._send_payload(call, leased, ready, push, rate, share, over, timer)
                        if share < 1 and not over.done():
                            return Answer(grpc.StatusCode.CANCELLED.name, "the worker hung up")
                        await call.done_writing()
                return _answer(await timer.wait(call))
        finally:
            if leased.connected is not None:
                leased.connected.close()  # it may have been left in the middle of a payload

    async def _send_payload(
        self,
        call: Any,
        leased: LeasedConnection,
        ready: str | bytes,
        push: Push,
        rate: float | None,
        share: float,
        over: asyncio.Future[bool],
        timer: IdleTimeout,
    ) -> None:
        """Send the payload as the server asks: in chunks, or on the data connection."""
        if (shown := leased.parse_ready(ready)) is None:
            await _send_chunks(call, _first(push.payload, share), rate, over, timer)
            return
        assert leased.connected is not None
        payload = _first(self._as_on_wire(shown, self._manifest(push), push.payload), share)
        await _send_beside(leased.connected, shown.ticket + payload, rate, over, timer)

    def _as_on_wire(self, shown: ShownTicket, manifest: ps_pb2.Manifest, payload: bytes) -> bytes:
        """The bytes of a payload on a data connection, encrypted if its ticket came with a key.

        As many as the server takes are encrypted; more are sent as they are, and fewer as if the rest came.
        """
        if not shown.key:
            return payload
        size = self._encoding(manifest.round).size
        transfer = AssociatedData.of("push", manifest, self.name, size)
        sealed = _Sealed()
        stream = EncryptedStream(cast("socket", sealed), shown.key, transfer.associated(), size)
        rest = memoryview(payload[:size].ljust(size, b"\0"))
        while rest:
            rest = rest[stream.send(rest) :]
        lacking = max(0, size - len(payload))
        return bytes(sealed.data[: len(sealed.data) - lacking]) + payload[size:]


class _Sealed:
    """In place of a socket: keeps what is sent."""

    def __init__(self) -> None:
        self.data = bytearray()

    def send(self, data: memoryview) -> int:
        self.data += data
        return len(data)


def _answer(data: bytes) -> Answer:
    return Answer(repeat=decode_message(ps_pb2.PushReply, data, MANIFEST_LIMIT).duplicate)


def _first(payload: bytes, share: float) -> bytes:
    """This share of a payload."""
    return payload if share >= 1 else payload[: int(len(payload) * share)]


def _pieces(size: int, rate: float | None) -> Iterator[tuple[int, int]]:
    """Where the pieces of so many bytes begin and end; at a rate, as many in each as are due in a tick."""
    step = BLOCK if rate is None else max(1, round(rate * TICK))
    for start in range(0, size, step):
        yield start, min(size, start + step)


async def _keep_pace(size: int, rate: float | None, over: asyncio.Future[bool]) -> bool:
    """Wait for as long as so many bytes take at this rate; whether the call still goes on."""
    if rate is not None:
        await asyncio.wait({over}, timeout=size / rate)
    return not over.done()


async def _send_chunks(
    call: Any, payload: bytes, rate: float | None, over: asyncio.Future[bool], timer: IdleTimeout
) -> None:
    for start, stop in _pieces(len(payload), rate):
        await timer.wait(call.write(encode_chunk(start, payload[start:stop])))
        if not await _keep_pace(stop - start, rate, over):
            return


async def _send_beside(
    connected: OpenConnection,
    payload: bytes,
    rate: float | None,
    over: asyncio.Future[bool],
    timer: IdleTimeout,
) -> None:
    """Send a ticket and a payload on a data connection, until all is sent or the call is over."""

    async def carry() -> None:
        for start, stop in _pieces(len(payload), rate):
            await timer.wait(connected.data.write(payload[start:stop]))
            if not await _keep_pace(stop - start, rate, over):
                return

    moving: asyncio.Future[Any] = asyncio.ensure_future(carry())
    try:
        await asyncio.wait({moving, over}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(moving)
