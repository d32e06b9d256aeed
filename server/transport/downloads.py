"""Downloads: the model to the workers that pulled it, over gRPC or on a data connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from time import monotonic

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.data_channel.connection import Transfer
from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR
from varangian.protos.network.chunk_size import ChunkSize
from varangian.protos.payloads.chunks import encode_chunk, encode_inline
from varangian.protos.payloads.encoding import FLOAT32, Parts
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
    """The messages of one snapshot: most are made once and shared by all pulls.

    Args:
        contract: what the run agreed on, as far as the payload goes.
        round: of the snapshot.
        payload: all parameters, or what has changed.
        digest: of all parameters.
        since: the round from which on the payload has the changes; None where it has all parameters.
    """

    def __init__(
        self,
        contract: Contract,
        round: int,
        payload: memoryview | Parts,
        digest: bytes,
        since: int | None = None,
    ) -> None:
        self.round, self.since, self.size = round, since, len(payload)
        self._payload = payload
        manifest = contract.manifest(round, digest)
        self.manifest = ps_pb2.PullReply(manifest=manifest, since=since).SerializeToString()
        # Not a method of this object: that would be a circle, and what nobody needs any more would stay in
        # memory until the garbage collector finds it, many rounds later.
        self._shared: Callable[[int], bytes] = lru_cache(SHARED)(
            partial(_make_message, payload, CHUNK_BYTES)
        )

    @cached_property
    def inline(self) -> bytes:
        """All of it in one message."""
        return encode_inline(self.manifest, self._payload[:])

    def pieces(self) -> Iterator[memoryview]:
        """The payload in pieces for a data connection."""
        for start, stop in PAYLOADS.pieces(self.size, CHUNK_BYTES):
            yield self._payload[start:stop]

    def messages(self, chunk_bytes: int = 0) -> Iterator[bytes]:
        """The manifest and the chunks.

        With another size than 0 they begin with it, are made for this pull, and grow on a fast connection:
        the time until the next one is asked for is that which this one took.
        """
        yield self.manifest
        pace, at = ChunkSize(), 0
        pace.size = min(max(chunk_bytes or CHUNK_BYTES, CHUNK_FLOOR), CHUNK_BYTES)
        while at < self.size:
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
        self._changes: Broadcast | None = None
        """Of the last round alone, for those who have the parameters before it."""
        self._known: dict[bytes, int] = {}
        """The last round with certain parameters, by their digest: of those that workers may hold and that
        have a fragment in common with the newest."""

    def for_pull(self, pull: AnsweredPull) -> Broadcast:
        """The model of an answered pull: what has changed, for a worker that holds what went before."""
        snapshot = pull.snapshot
        assert snapshot is not None
        shared, base = self._shared(snapshot), self._known.get(pull.have) if pull.have else None
        if base is None or snapshot.round == 0:
            return shared
        # After a round without an update the last fragment comes once more, so that there is a payload.
        since = min(base, snapshot.round - 1)
        if not 0 < snapshot.round - since < self._contract.terms.fragments:
            return shared
        if (kept := self._changes) is not None and (kept.round, kept.since) == (snapshot.round, since):
            return kept
        contract = self._contract.of_changes(since, snapshot.round)
        assert contract.slices is not None
        parts = Parts(snapshot.payload, contract.slices)
        made = Broadcast(contract, snapshot.round, parts, snapshot.digest, since)
        if since == snapshot.round - 1 and shared is self._broadcast:
            self._changes = made
        return made

    async def send_model(
        self, worker: str, pull: AnsweredPull, sent: Broadcast, chunk_bytes: int, call: Call
    ) -> None:
        """Send the model of an answered pull, or say midway that there is a newer one to ask for.

        Raises:
            Refused: the other end lets us wait.
        """
        round, messages = sent.round, sent.messages(chunk_bytes)
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
        sent = self.for_pull(pull)
        pull.delivered = True
        self._sent["grpc"] += sent.size
        return sent.inline

    async def send_beside(
        self, worker: str, pull: AnsweredPull, sent: Broadcast, ticket: DataTicket, call: Call
    ) -> None:
        """Send the model with its payload on the data connection whose other end has the ticket.

        Raises:
            Refused: the other end lets us wait, or hangs up.
        """
        ready = (metadata_keys.READY, ticket.text)
        with calls.cancel_if_gone():
            await call.send_initial_metadata((ready, *self._trace(sent.round)))
        await self.send_message(sent.manifest, call)
        async with calls.idle_timeout(self._idle) as timer:
            with calls.refuse_if_cut():
                connection = await timer.wait(ticket.connection())
                transfer = Transfer(sent.pieces())
                while not transfer.done and not self._pulls.over(worker, sent.round):
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
            self._broadcast, self._changes = made, None
            self._note(snapshot)
        return made

    def _note(self, snapshot: Snapshot) -> None:
        """Note that workers may hold these parameters from now on."""
        if (count := self._contract.terms.fragments) > 1:
            known = {
                digest: round for digest, round in self._known.items() if snapshot.round - round < count
            }
            self._known = {**known, snapshot.digest: snapshot.round}


def mark_last(messages: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each message, and whether it is the last."""
    rest = iter(messages)
    message = next(rest, None)
    while message is not None:
        following = next(rest, None)
        yield message, following is None
        message = following


def _make_message(payload: memoryview | Parts, size: int, at: int) -> bytes:
    return encode_chunk(at, payload[at : at + size])
