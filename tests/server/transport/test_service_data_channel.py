"""Answers of the service about payloads beside its calls, word for word and byte for byte."""

import asyncio
import contextlib
import re
from dataclasses import replace

import grpc
import pytest
import torch
from tests.server.transport.test_service import BIG, LIMITS, Raw, chunk, refusal, usable, world

from varangian.protos import ps_pb2
from varangian.protos.layout import Layout
from varangian.protos.payloads.encoding import encode_vector, payload_digest

SIZE = BIG.numel * 4
VECTOR = torch.arange(BIG.numel, dtype=torch.float32)
DATA = encode_vector(VECTOR).tobytes()
SEAL = ps_pb2.Seal(content_digest=payload_digest(DATA))
LANE = ("varangian-lane", "1")


class Beside:
    """A worker in bytes that has a connection beside gRPC."""

    def __init__(self, raw: Raw, reader, writer) -> None:
        self.raw, self.reader, self.writer = raw, reader, writer
        self.identity = [*raw.identity, LANE]

    async def pushing(self, round=0, digest=b""):
        """A push that was let in, and what its headers say."""
        call = self.raw.begin(self.raw.contract.manifest(round, digest), metadata=[LANE])
        return call, (await call.headers()).get("varangian-ready")

    async def pulling(self, after=-1):
        request = ps_pb2.PullRequest(run_id="run-1", after=after).SerializeToString()
        call = self.raw.calls["Pull"](request, metadata=self.identity)
        return call, dict(await call.initial_metadata()).get("varangian-ready")

    async def send(self, *parts):
        for part in parts:
            self.writer.write(bytes.fromhex(part) if isinstance(part, str) else part)
            await self.writer.drain()

    async def closed(self):
        """Whether the server has nothing more to say here."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@contextlib.asynccontextmanager
async def beside(this, name="w00"):
    async with this.raw(name, join=False) as raw:
        port = (await raw.join()).data_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Beside(raw, reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0.01)


async def answer(call):
    return ps_pb2.PushReply.FromString(await call.reply())


async def test_who_joins_hears_of_the_port():
    async with world() as this, this.raw(join=False) as raw:
        port = (await raw.join()).data_port
        assert port not in (0, int(this.address.rpartition(":")[2]))
        assert (await raw.status()).data_port == port
    async with world(data_port=None) as this, this.raw(join=False) as raw:
        assert (await raw.join()).data_port == 0
        assert (await raw.status()).data_port == 0


async def test_a_ticket_is_for_whoever_asks_for_one():
    async with world(BIG) as this, beside(this) as mine, this.raw("w01") as other:
        call, ready = await mine.pushing()
        assert re.fullmatch(r"[0-9a-f]{32}", ready)
        plain = other.begin(this.contract.manifest(0, b""))
        assert (await plain.headers())["varangian-ready"] == "1"
        for each in (call, plain):
            each.cancel()
    async with world(BIG, data_port=None) as this, this.raw() as raw:
        call, ready = await Beside(raw, None, None).pushing()
        assert ready == "1"
        call.cancel()


async def test_a_push_with_its_payload_beside_it():
    async with world(BIG) as this, beside(this) as worker:
        call, ticket = await worker.pushing()
        await worker.send(ticket, DATA)
        call.write(SEAL)
        assert not (await answer(call)).duplicate
        assert this.coordinator.status().counted == ("w00",)
        # Whoever has said it by then has nothing to send again, and needs no ticket.
        call, ready = await worker.pushing(digest=payload_digest(DATA))
        assert ready is None
        assert (await answer(call)).duplicate


async def test_a_ticket_and_a_payload_may_come_in_any_pieces_and_the_digest_first():
    async with world(BIG) as this, beside(this) as worker:
        call, ticket = await worker.pushing(digest=payload_digest(DATA))
        letter = bytes.fromhex(ticket)
        await worker.send(letter[:5], letter[5:] + DATA[:3], DATA[3:100_001], DATA[100_001:])
        assert not (await answer(call)).duplicate


async def test_a_pull_with_its_payload_beside_it_and_the_connection_again():
    async with world(BIG) as this, beside(this) as worker:
        tickets = []
        for _ in range(3):
            call, ticket = await worker.pulling()
            manifest = ps_pb2.PullReply.FromString(await call.read()).manifest
            await worker.send(ticket)
            data = await worker.reader.readexactly(SIZE)
            assert await call.read() is grpc.aio.EOF
            assert payload_digest(data) == manifest.content_digest
            tickets.append(ticket)
        assert len({*tickets}) == 3
        call, ticket = await worker.pushing()
        await worker.send(ticket, DATA)
        call.write(SEAL)
        assert not (await answer(call)).duplicate


@pytest.mark.parametrize(
    ("data", "last", "status", "code"),
    [
        pytest.param(DATA, [ps_pb2.Seal(content_digest=bytes(16))], "DATA_LOSS", "DIGEST", id="seal"),
        pytest.param(DATA, [], "INVALID_ARGUMENT", "DIGEST_SIZE", id="no seal"),
        pytest.param(DATA, [chunk(0, b"x"), SEAL], "INVALID_ARGUMENT", "ORDER", id="a chunk"),
        pytest.param(
            b"\xff" * SIZE,
            [ps_pb2.Seal(content_digest=payload_digest(b"\xff" * SIZE))],
            "INVALID_ARGUMENT",
            "UNSOUND",
            id="not finite",
        ),
    ],
)
async def test_what_is_wrong_beside_a_call_is_said_in_it(data, last, status, code):
    async with world(BIG, f=1, quorum=2) as this, beside(this) as worker:
        call, ticket = await worker.pushing()
        await worker.send(ticket, data)
        async with refusal(grpc.StatusCode[status], code):
            call.write(*last)
            await call.reply()
        assert this.coordinator.status().counted == ()


async def test_a_connection_that_ends_early_ends_its_call_which_may_be_made_again():
    async with world(BIG) as this:
        for sent in (b"", DATA[:-1]):
            async with beside(this) as worker:
                call, ticket = await worker.pushing()
                await worker.send(ticket, sent)
                worker.writer.close()
                async with refusal(grpc.StatusCode.UNAVAILABLE, "LANE"):
                    await call.end()
        assert this.coordinator.status().present == ()
        await usable(this)


async def test_a_call_that_ends_early_ends_its_connection():
    async with world(BIG) as this, beside(this) as worker:
        call, ticket = await worker.pushing()
        await worker.send(ticket, DATA[:1000])
        while "w00" not in this.coordinator.status().present:
            await asyncio.sleep(0.005)
        call.cancel()
        assert await worker.closed()
        await usable(this)


async def test_a_payload_that_stalls_is_given_up():
    async with world(BIG, limits=replace(LIMITS, idle=0.05)) as this:
        for sent in ([], ["the ticket"], ["the ticket", DATA[:1000]]):
            async with beside(this) as worker:
                ticket = None
                while ticket is None:  # a busy machine may pause before the server lets it in
                    call, ticket = await worker.pushing()
                with contextlib.suppress(ConnectionError):  # or here
                    await worker.send(*(ticket if part == "the ticket" else part for part in sent))
                async with refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE"):
                    await call.end()
                if sent:
                    assert await worker.closed()
        assert this.coordinator.status().present == ()


async def test_an_upload_beside_its_call_ends_when_its_round_does():
    async with (
        world(BIG, rounds=3, quorum=2, deadline=0.05) as this,
        beside(this) as late,
        this.raw("w01") as a,
        this.raw("w02") as b,
    ):
        call, ticket = await late.pushing()
        await late.send(ticket, DATA[:1000])
        await asyncio.gather(*(raw.push(0, torch.zeros(BIG.numel)) for raw in (a, b)))
        while this.coordinator.round == 0:
            await asyncio.sleep(0.005)
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "STALE"):
            with contextlib.suppress(ConnectionError):
                await late.send(DATA[1000:])
            await call.end()
        assert await late.closed()


async def test_a_pull_beside_its_call_ends_when_its_round_does():
    layout = Layout((("weight", (32, 1024, 1024)),))
    async with (
        world(layout, shortfall="skip", deadline=0.05) as this,
        beside(this) as slow,
        this.raw("w01") as other,
    ):
        pull, ticket = await slow.pulling()
        assert ps_pb2.PullReply.FromString(await pull.read()).manifest.round == 0
        await slow.send(ticket)
        upload = other.begin(this.contract.manifest(0, bytes(16)))
        while this.coordinator.round == 0:
            await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionError):
            assert len(await slow.reader.read(-1)) < layout.numel * 4
        assert ps_pb2.PullReply.FromString(await pull.read()).HasField("again")
        assert await pull.read() is grpc.aio.EOF
        upload.cancel()


async def test_more_stalled_payloads_than_seats_do_not_keep_others_from_pushing():
    limits = replace(LIMITS, receiving=1)
    async with world(BIG, limits=limits) as this, beside(this) as stalled, beside(this, "w01") as slow:
        first, ticket = await stalled.pushing()
        await stalled.send(ticket, DATA[:1000])
        second, ready = await slow.pushing()  # and its ticket is never shown
        assert len(ready) == len(ticket)
        async with beside(this, "w02") as honest:
            third, ticket = await honest.pushing()
            await honest.send(ticket, DATA)
            third.write(SEAL)
            assert not (await answer(third)).duplicate
        assert this.coordinator.status().counted == ("w02",)
        for call in (first, second):
            assert not call.done()
            call.cancel()


async def test_the_status_counts_connections_that_were_closed():
    async with world() as this, beside(this) as worker:
        await worker.send(bytes(16))
        assert await worker.closed()
        assert (await worker.raw.status()).refusals == "TICKET 1\n"
