"""Downloads: the model to the workers that pulled it, over gRPC or on a data connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from time import monotonic

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.chunks import encode_chunk, encode_inline
from varangian.protos.contract import Contract
from varangian.protos.data_channel.connection import Transfer
from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.encoding import FLOAT32
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR
from varangian.protos.network.chunk_size import ChunkSize
from varangian.server.observability.traffic import Traffic
from varangian.server.rounds.pulls import AnsweredPull, Pulls
from varangian.server.training.parameters import Snapshot
from varangian.server.transport import calls
from varangian.server.transport.calls import Call

AGAIN = ps_pb2.PullReply(again=ps_pb2.Again()).SerializeToString()
SHARED = 16
"""Messages that are kept for the next pull. Workers pull at about the same time: a few are enough for all,
and the parameters are not in memory a second time."""


class Broadcast:
    """The messages of one snapshot: most are made once and shared by all pulls."""

    def __init__(self, contract: Contract, round: int, payload: memoryview, digest: bytes) -> None:
        self.round = round
        self._payload = payload
        self.manifest = ps_pb2.PullReply(manifest=contract.manifest(round, digest)).SerializeToString()
        # Not a method of this object: that would be a circle, and what nobody needs any more would stay in
        # memory until the garbage collector finds it, many rounds later.
        self._shared: Callable[[int], bytes] = lru_cache(SHARED)(
            partial(_make_message, payload, CHUNK_BYTES)
        )

    @cached_property
    def inline(self) -> bytes:
        """All of it in one message."""
        return encode_inline(self.manifest, self._payload)

    def messages(self, chunk_bytes: int = 0) -> Iterator[bytes]:
        """The manifest and the chunks.

        With another size than 0 they begin with it, are made for this pull, and grow on a fast connection:
        the time until the next one is asked for is that which this one took.
        """
        yield self.manifest
        pace, at = ChunkSize(), 0
        pace.size = min(max(chunk_bytes or CHUNK_BYTES, CHUNK_FLOOR), CHUNK_BYTES)
        while at < len(self._payload):
            # Back to where the shared ones begin.
            size = min(pace.size, CHUNK_BYTES - at % CHUNK_BYTES)
            began = monotonic()
            yield self._shared(at) if size == CHUNK_BYTES else _make_message(self._payload, size, at)
            pace.record(size, monotonic() - began)
            at += size


class Downloads:
    """All pulls of a run.

    Args:
        contract: what the run agreed on.
        pulls: knows whether somebody still waits for the answer.
        idle: seconds without progress after which a stream is given up.
        alive: called with the worker at each message.
        traffic: counts the bytes that go, and knows the spans of rounds.
    """

    def __init__(
        self,
        contract: Contract,
        pulls: Pulls,
        idle: float,
        alive: Callable[[str], None],
        traffic: Traffic,
    ) -> None:
        self._contract = replace(contract, dtype=FLOAT32)
        self._pulls = pulls
        self._idle = idle
        self._alive = alive
        self._sent, self._traffic = traffic.sent, traffic
        self._broadcast: Broadcast | None = None

    async def send_model(self, worker: str, pull: AnsweredPull, chunk_bytes: int, call: Call) -> None:
        """Send the model of an answered pull, or say midway that there is a newer one to ask for.

        Raises:
            Refused: the other end lets us wait.
        """
        assert pull.snapshot is not None
        round, messages = pull.snapshot.round, self._shared(pull.snapshot).messages(chunk_bytes)
        async with calls.idle_timeout(self._idle) as timer:
            for message, pull.delivered in mark_last(messages):
                self._alive(worker)
                # A vector for a model that is too old by now would be refused.
                over = self._pulls.over(worker, round)
                with calls.cancel_if_gone():
                    await timer.wait(call.write(AGAIN if over else message))
                if over:
                    return
                self._sent["grpc"] += len(message)

    def inline(self, pull: AnsweredPull) -> bytes:
        """The model of an answered pull in one message, which is on its way from now on."""
        assert pull.snapshot is not None
        pull.delivered = True
        self._sent["grpc"] += len(pull.snapshot.payload)
        return self._shared(pull.snapshot).inline

    async def send_beside(self, worker: str, pull: AnsweredPull, ticket: DataTicket, call: Call) -> None:
        """Send the model with its payload on the data connection whose other end has the ticket.

        Raises:
            Refused: the other end lets us wait, or hangs up.
        """
        snapshot = pull.snapshot
        assert snapshot is not None
        ready = (metadata_keys.READY, ticket.text)
        await call.send_initial_metadata((ready, *self._trace(snapshot.round)))
        await self.send_message(self._shared(snapshot).manifest, call)
        async with calls.idle_timeout(self._idle) as timer:
            with calls.refuse_if_cut():
                connection = await timer.wait(ticket.connection())
                transfer = Transfer(pieces(snapshot.payload))
                while not transfer.done and not self._pulls.over(worker, snapshot.round):
                    await timer.wait(connection.ready())
                    self._sent["data"] += await connection.send(transfer)
                    self._alive(worker)
        if transfer.done:
            pull.delivered = True
            ticket.complete()
        else:
            # A vector for a model that is too old by now would be refused.
            await self.send_message(AGAIN, call)

    async def tell_trace(self, round: int, call: Call) -> None:
        """Tell who pulls a model the span of its round, where there are traces."""
        if found := self._trace(round):
            with calls.cancel_if_gone():
                await call.send_initial_metadata(found)

    def _trace(self, round: int) -> tuple[tuple[str, str], ...]:
        parent = self._traffic.trace_parent
        return () if parent is None else ((metadata_keys.TRACE_PARENT, parent(round)),)

    async def send_message(self, message: bytes, call: Call) -> None:
        """Send one message."""
        async with calls.idle_timeout(self._idle) as timer:
            with calls.cancel_if_gone():
                await timer.wait(call.write(message))

    def _shared(self, snapshot: Snapshot) -> Broadcast:
        """The messages of a snapshot; those of the newest are kept, as most workers ask for it."""
        if self._broadcast is not None and self._broadcast.round == snapshot.round:
            return self._broadcast
        made = Broadcast(self._contract, snapshot.round, snapshot.payload, snapshot.digest)
        if self._broadcast is None or self._broadcast.round < snapshot.round:
            self._broadcast = made
        return made


def pieces(payload: memoryview) -> Iterator[memoryview]:
    for start, stop in PAYLOADS.pieces(len(payload), CHUNK_BYTES):
        yield payload[start:stop]


def mark_last(messages: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each message, and whether it is the last."""
    rest = iter(messages)
    message = next(rest, None)
    while message is not None:
        following = next(rest, None)
        yield message, following is None
        message = following


def _make_message(payload: memoryview, size: int, at: int) -> bytes:
    return encode_chunk(at, payload[at : at + size])
