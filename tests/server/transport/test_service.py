"""The service over real sockets, spoken to in raw bytes: what `Client` would never send is the point."""

import asyncio
import contextlib
import logging
import math
import socket
import struct
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chunks import cut_chunks
from tests.extent import examples, patience
from tests.uploading import Upload

from varangian.aggregators import Aggregator, Krum
from varangian.protos import ps_pb2
from varangian.protos.contract import Contract, Terms
from varangian.protos.layout import Layout
from varangian.protos.messages import CHUNK_BYTES, MESSAGE_LIMIT, PROTOCOL
from varangian.protos.network.dial import open_aio_channel, open_channel
from varangian.protos.network.listen import PortInUse
from varangian.protos.payloads.chunks import encode_inline
from varangian.protos.payloads.encoding import encode_vector, payload_digest
from varangian.protos.shared_settings import SharedSettings
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.limits.limits import Limits
from varangian.server.limits.quotas import TokenBucket
from varangian.server.limits.upload_scheduler import UploadTurn
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.server.transport.grpc_server import bind, options
from varangian.server.transport.uploads import message_bytes
from varangian.worker.transport.client import Client, ClientError
from varangian.worker.transport.retry import Backoff

NAMES = ("w00", "w01", "w02")
BIG = Layout((("weight", (300, 1000)), ("bias", (7,))))
"""Two chunks, the second a short one."""
LAYOUT = Layout((("weight", (3, 2)), ("bias", (2,))))
CONTRACT = Contract("run-1", LAYOUT)
LIMITS = Limits(idle=20.0, status=0.0, patience=0.05, grace=0.05, turn_seconds=0.02)
SERVICE = "/varangian.v1.ParameterServer/"
RPCS = {
    "Join": "unary_unary",
    "Pull": "unary_stream",
    "Push": "stream_unary",
    "Status": "unary_unary",
    "PullInline": "unary_unary",
    "Decline": "unary_unary",
}
INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
ZEROS = b"\x00" * 32
WRONG = ps_pb2.Seal(content_digest=bytes(16))
NOT_FINITE = encode_vector(torch.full((8,), torch.nan)).tobytes()


@dataclass
class World:
    """A running server and what it was made of."""

    address: str
    coordinator: Coordinator
    learner: Learner
    sessions: Sessions
    records: list
    contract: Contract
    stop: asyncio.Event
    ended: asyncio.Task

    @contextlib.asynccontextmanager
    async def raw(self, name="w00", join=True, **changes):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        async with contextlib.AsyncExitStack() as stack:
            channel = await stack.enter_async_context(open_aio_channel(self.address, options=options))
            streams = stack.enter_context(open_channel(self.address, options=options))
            session = changes.pop("session", f"{NAMES.index(name):032x}")
            identity = {"worker": name, "token": self.sessions.token(name), "session": session} | changes
            sent = [(f"varangian-{k}", v) for k, v in identity.items()]
            raw = Raw(channel, streams, self.contract, sent)
            if join:
                await raw.join()
            yield raw


class Raw:
    """The four calls, in bytes."""

    def __init__(self, channel, streams, contract, identity):
        self.contract, self.identity = contract, identity
        self.calls = {name: getattr(channel, kind)(SERVICE + name) for name, kind in RPCS.items()}
        self._push = streams.stream_unary(SERVICE + "Push")

    async def join(self, **changes):
        request = {"protocol": PROTOCOL, "layout": self.contract.layout.text} | changes
        data = ps_pb2.JoinRequest(**request).SerializeToString()
        return ps_pb2.JoinReply.FromString(await self.calls["Join"](data, metadata=self.identity))

    async def pull(self, after=-1, run_id=None, chunk_bytes=0):
        request = ps_pb2.PullRequest(
            run_id=run_id or self.contract.run_id, after=after, chunk_bytes=chunk_bytes
        )
        call = self.calls["Pull"](request.SerializeToString(), metadata=self.identity)
        return [ps_pb2.PullReply.FromString(data) async for data in call]

    def begin(self, *parts, metadata=()):
        """A push of these parts that goes on."""
        return Upload(self._push, [*self.identity, *metadata], *parts, message=as_bytes)

    async def send(self, *parts):
        """A push of these parts and no more."""
        return ps_pb2.PushReply.FromString(await self.begin(*parts).reply())

    async def pull_later(self, after):
        """The answer to a pull once there is a later model, or the end of the run."""
        while (parts := await self.pull(after))[0].HasField("again"):
            pass
        return parts

    async def pull_inline(self, after=-1):
        request = ps_pb2.PullRequest(run_id=self.contract.run_id, after=after).SerializeToString()
        return ps_pb2.PullReply.FromString(await self.calls["PullInline"](request, metadata=self.identity))

    async def push_inline(self, data, **changes):
        manifest = self.contract.manifest(0, payload_digest(data))
        for field, value in changes.items():
            setattr(manifest, field, value)
        return await self.send(encode_inline(framed(manifest), data))

    async def push(self, round, vector, **changes):
        data = encode_vector(vector, self.contract.dtype)
        manifest = self.contract.manifest(round, payload_digest(data))
        for field, value in changes.items():
            setattr(manifest, field, value)
        return await self.send(manifest, *cut_chunks(data))

    async def decline(self, round, reason):
        request = ps_pb2.DeclineRequest(run_id=self.contract.run_id, round=round, reason=reason)
        await self.calls["Decline"](request.SerializeToString(), metadata=self.identity)

    async def status(self):
        return ps_pb2.StatusReply.FromString(await self.calls["Status"](b""))


FIELDS = {ps_pb2.Manifest: "manifest", ps_pb2.Chunk: "chunk", ps_pb2.Seal: "seal"}


def framed(part):
    field = FIELDS[type(part)]
    return ps_pb2.PushRequest(**{field: part}).SerializeToString()


def as_bytes(part):
    return part if isinstance(part, bytes) else framed(part)


@contextlib.asynccontextmanager
async def world(
    layout=LAYOUT,
    rounds=9,
    limits=LIMITS,
    f=0,
    dtype="float32",
    exact=0,
    data_port=0,
    common=None,
    terms=None,
    traffic=None,
    observe=None,
    returns=False,
    for_good=str,
    **policy,
):
    torch.set_num_threads(1)
    records = []
    rules = {"quorum": 3, "deadline": 60.0, "shortfall": "wait"} | policy
    learner = Learner(torch.zeros(layout.numel), Aggregator(Krum(f=0)), Sgd(lr=1.0), rounds=rounds, seed=1)
    coordinator = Coordinator(
        Machine(RunPolicy(NAMES, rounds, f=f, **rules, selection=Everyone())),
        learner,
        evaluate=lambda _: (0.0, 0.0),
        evaluate_every=100,
        observe=observe or records.append,
    )
    known, stop, ready = Sessions(NAMES, b"0123456789abcdef"), asyncio.Event(), asyncio.Future()
    ended = asyncio.create_task(
        serve(
            coordinator,
            known,
            layout,
            run_id="run-1",
            host="127.0.0.1",
            port=0,
            ready=ready.set_result,
            stop=stop,
            dtype=dtype,
            exact=exact,
            limits=limits,
            data_port=data_port,
            common=common,
            classes=7,
            terms=terms,
            traffic=traffic,
            returns=returns,
            for_good=for_good,
        )
    )
    await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        ended.result()
    contract = Contract("run-1", layout, dtype)
    this = World(ready.result(), coordinator, learner, known, records, contract, stop, ended)
    try:
        yield this
    finally:
        stop.set()
        await ended


def warnings_of(caplog, module):
    logger = f"varangian.server.transport.{module}"
    return [
        one.getMessage() for one in caplog.records if one.name == logger and one.levelno >= logging.WARNING
    ]


@contextlib.asynccontextmanager
async def refusal(status, code, *words):
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = caught.value
    trailing = dict(error.trailing_metadata())
    assert (error.code(), trailing.get("varangian-code")) == (status, code), error
    for word in words:
        assert word in error.details()


async def persistent(call, *arguments):
    """A call that is made again as long as a busy machine lets it pause for too long."""
    while True:
        try:
            return await call(*arguments)
        except grpc.RpcError as error:
            if dict(error.trailing_metadata()).get("varangian-code") != "IDLE":
                raise


async def usable(this):
    """The server lives on: a full round still works for everyone."""
    before = this.coordinator.round
    async with this.raw("w00") as a, this.raw("w01") as b, this.raw("w02") as c:
        vector = torch.ones(this.contract.layout.numel)
        await asyncio.gather(*(persistent(worker.push, before, vector) for worker in (a, b, c)))
        await persistent(a.pull_later, before)
    assert this.coordinator.round == before + 1
    assert this.records[-1].missing == ()


async def test_a_round_with_three_workers():
    async with world() as this, this.raw("w00") as a, this.raw("w01") as b, this.raw("w02") as c:
        joined = await a.join()
        assert (joined.protocol, joined.run_id, joined.round) == (PROTOCOL, "run-1", 0)
        manifest, chunk = await a.pull()
        assert (manifest.manifest.round, chunk.chunk.data) == (0, b"\x00" * LAYOUT.numel * 4)
        for worker in (a, b, c):
            reply = await worker.push(0, torch.full((8,), 2.0))
            assert (reply.round, reply.duplicate) == (0, False)
        parts = await a.pull_later(0)
        assert parts[0].manifest.round == 1
        assert parts[1].chunk.data == encode_vector(torch.full((8,), -2.0)).tobytes()
        assert parts[0].manifest.content_digest == payload_digest(parts[1].chunk.data)
        before = time.time()
        status = await a.status()
        assert before - 0.001 <= status.now / 1000 <= time.time() + 0.001  # it is rounded
        assert (status.round, status.rounds, status.finished) == (1, 9, False)
        assert (status.workers, status.present) == (3, 3)


async def test_what_a_worker_says_it_holds_is_compared_with_what_the_server_knows():
    async with world() as this, this.raw("w00") as a:
        request = {"run_id": "run-1", "after": -1}
        for have in (payload_digest(ZEROS), bytes(16)):
            data = ps_pb2.PullRequest(**request, have=have).SerializeToString()
            call = a.calls["Pull"](data, metadata=a.identity)
            first, *chunks = [ps_pb2.PullReply.FromString(part) async for part in call]
            assert not first.HasField("since")
            assert b"".join(part.chunk.data for part in chunks) == ZEROS
        for have in (b"\0", bytes(17), bytes(1000)):
            data = ps_pb2.PullRequest(**request, have=have).SerializeToString()
            async with refusal(INVALID, "DIGEST_SIZE"):
                await a.calls["PullInline"](data, metadata=a.identity)


async def test_a_push_is_told_the_weight_of_the_last_row_of_its_worker():
    async with world() as this, this.raw("w00") as a, this.raw("w01") as b, this.raw("w02") as c:
        first = [await worker.push(0, torch.ones(8) * k) for k, worker in enumerate((a, b, c))]
        assert not any(reply.HasField("weight") for reply in first)
        await a.pull_later(0)
        told = [await worker.push(1, torch.ones(8)) for worker in (a, a, b, c)]
        assert [reply.duplicate for reply in told] == [False, True, False, False]
        weights = this.records[0].weights
        assert {reply.weight_round for reply in told} == {0}
        assert [reply.weight for reply in told] == [weights[name] for name in ("w00", *NAMES)]
        assert sorted(weights.values()) == [0, 0, 1]


async def test_a_round_in_which_every_payload_is_in_one_message():
    async with (
        world(rounds=1, limits=replace(LIMITS, grace=20.0)) as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        assert (await a.join()).inline
        reply = await a.pull_inline()
        assert (reply.manifest.round, reply.payload) == (0, ZEROS)
        assert reply.manifest.content_digest == payload_digest(reply.payload)
        data = encode_vector(torch.full((8,), 2.0)).tobytes()
        for worker in (a, b):
            assert not (await worker.push_inline(data)).duplicate
        assert (await a.push_inline(data)).duplicate
        await c.push(0, torch.full((8,), 2.0))
        for worker in (a, b, c):
            while (reply := await worker.pull_inline(0)).HasField("again"):
                pass
            assert reply.finished.reason == "all 1 rounds are done"
        assert torch.equal(this.learner.parameters, torch.full((8,), -2.0))


@pytest.mark.parametrize(
    ("data", "changes", "status", "code"),
    [
        (ZEROS[:-4], {}, "INVALID_ARGUMENT", "TOO_FEW_BYTES"),
        (ZEROS + ZEROS, {}, "INVALID_ARGUMENT", "TOO_MANY_BYTES"),
        (ZEROS, {"content_digest": b""}, "INVALID_ARGUMENT", "DIGEST_SIZE"),
        (ZEROS, {"content_digest": bytes(16)}, "DATA_LOSS", "DIGEST"),
        (ZEROS, {"round": 1}, "OUT_OF_RANGE", "FUTURE"),
        (bytes(70_000), {}, "INVALID_ARGUMENT", "MALFORMED"),
        (NOT_FINITE, {}, "INVALID_ARGUMENT", "UNSOUND"),
    ],
)
async def test_a_payload_in_one_message_is_checked_like_any_other(data, changes, status, code):
    async with world() as this, this.raw() as raw:
        async with refusal(grpc.StatusCode[status], code):
            await raw.push_inline(data, **changes)
        assert this.coordinator.status().counted == ()


async def test_a_large_model_has_no_message_for_all_of_it():
    async with world(BIG) as this, this.raw(join=False) as raw:
        assert not (await raw.join()).inline
        async with refusal(grpc.StatusCode.UNIMPLEMENTED, None):
            await raw.pull_inline()
        async with refusal(INVALID, "MALFORMED", "at most 65536"):
            await raw.push_inline(bytes(70_000))


async def test_a_vector_in_several_chunks():
    async with (
        world(BIG, rounds=1, limits=replace(LIMITS, grace=20.0)) as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        parts = await a.pull()
        assert [len(part.chunk.data) for part in parts[1:]] == [CHUNK_BYTES, BIG.numel * 4 - CHUNK_BYTES]
        vector = torch.arange(BIG.numel, dtype=torch.float32)
        await asyncio.gather(*(worker.push(0, vector) for worker in (a, b, c)))
        for (part,) in await asyncio.gather(*(worker.pull_later(0) for worker in (a, b, c))):
            assert part.finished.reason == "all 1 rounds are done"
        assert torch.equal(this.learner.parameters, -vector)


async def test_a_bfloat16_run_takes_half_the_bytes_and_gives_float32():
    async with (
        world(BIG, dtype="bfloat16") as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        assert (await a.join()).dtype == ps_pb2.DTYPE_BFLOAT16
        vector = torch.randn(BIG.numel)
        wide = encode_vector(vector)
        async with refusal(INVALID, "DTYPE", "in place of bfloat16"):
            await a.send(Contract("run-1", BIG).manifest(0, payload_digest(wide)))
        for raw in (a, b, c):
            await raw.push(0, vector)
        parts = await a.pull_later(0)
        assert parts[0].manifest.dtype == ps_pb2.DTYPE_FLOAT32
        pulled = b"".join(part.chunk.data for part in parts[1:])
        assert pulled == encode_vector(-vector.bfloat16().float()).tobytes()


async def test_an_int8_run_takes_a_quarter_of_the_bytes_and_gives_float32():
    contract = Contract("run-1", BIG, "int8", exact=3)
    vector = torch.randn(BIG.numel)
    async with (
        world(BIG, dtype="int8", exact=3) as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        reply = await a.join()
        assert (reply.dtype, reply.buffers) == (ps_pb2.DTYPE_INT8, 3)
        payload = bytes(contract.encoding.encode(vector, 1))
        assert 4 * BIG.numel / len(payload) > 3.9
        for raw, cut in ((a, 1 << 20), (b, 99_999), (c, 260 * 1000 + 3)):
            manifest = contract.manifest(0, payload_digest(payload))
            await raw.send(manifest, *cut_chunks(memoryview(payload), cut))
        parts = await a.pull_later(0)
        assert parts[0].manifest.dtype == ps_pb2.DTYPE_FLOAT32
        pulled = b"".join(part.chunk.data for part in parts[1:])
        assert pulled == encode_vector(0.0 - contract.encoding.decode(payload)).tobytes()


@pytest.mark.parametrize("scale", [math.nan, -math.inf, -1.0, 3e38, 1e-44])
@pytest.mark.parametrize("inline", [False, True])
async def test_a_scale_that_no_worker_writes_proves_a_fault(scale, inline):
    contract = Contract("run-1", LAYOUT, "int8")
    data = struct.pack("<f8b", scale, *range(-4, 4))
    async with world(dtype="int8", f=1) as this, this.raw("w00") as raw, this.raw("w01") as other:
        manifest = contract.manifest(0, payload_digest(data))
        parts = [encode_inline(framed(manifest), data)] if inline else [manifest, *cut_chunks(data)]
        async with refusal(INVALID, "UNSOUND", "not finite"):
            await raw.send(*parts)
        assert (await other.status()).round == 0
        async with refusal(INVALID, "TOO_MANY_BYTES"):
            await other.send(manifest, *cut_chunks(data + b"0"))


def sealed(data):
    """A push without a digest in its manifest."""
    return [CONTRACT.manifest(0, b""), *cut_chunks(data), ps_pb2.Seal(content_digest=payload_digest(data))]


async def test_a_push_may_be_sealed_at_its_end():
    async with world() as this, this.raw() as raw:
        data = encode_vector(torch.arange(8.0))
        assert not (await raw.send(*sealed(data))).duplicate
        assert this.coordinator.status().counted == ("w00",)
        # Whoever has said it by then has nothing to send again.
        assert (await raw.send(CONTRACT.manifest(0, payload_digest(data)))).duplicate
        async with refusal(FAILED, "REPEATED", "with its digest"):
            await raw.send(*sealed(data))
        async with refusal(grpc.StatusCode.ALREADY_EXISTS, "COUNTED"):
            await raw.send(CONTRACT.manifest(0, bytes(16)))


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        pytest.param(lambda parts: parts[:-1], "INVALID_ARGUMENT", "DIGEST_SIZE", id="no seal"),
        pytest.param(lambda parts: parts[:1] + parts[2:], "INVALID_ARGUMENT", "TOO_FEW_BYTES", id="early"),
        pytest.param(lambda parts: [*parts, parts[-1]], "INVALID_ARGUMENT", "MALFORMED", id="twice"),
        pytest.param(lambda parts: [*parts, parts[1]], "INVALID_ARGUMENT", "ORDER", id="in the middle"),
        pytest.param(
            lambda parts: [*parts[:-1], ps_pb2.Seal(content_digest=bytes(16))],
            "DATA_LOSS",
            "DIGEST",
            id="wrong",
        ),
        pytest.param(
            lambda parts: [manifest(), *parts[1:]], "INVALID_ARGUMENT", "MALFORMED", id="and a digest"
        ),
    ],
)
async def test_a_seal_is_the_last_word_and_the_only_one(change, status, code):
    async with world() as this, this.raw() as raw:
        async with refusal(grpc.StatusCode[status], code):
            await raw.send(*change(sealed(ZEROS)))
        assert this.coordinator.status().present == ()
        await usable(this)


@pytest.mark.parametrize(
    ("payload", "workers", "size"),
    [(400 << 20, 15, 4 << 20), (45_000_000, 1, 4 << 20), (45_000_000, 15, 2 << 20), (4, 1, 2 << 20)],
)
def test_messages_are_as_large_as_the_memory_of_their_connections_allows(payload, workers, size):
    assert message_bytes(payload, workers) == size


async def test_whoever_joins_hears_how_large_messages_should_be():
    async with world(BIG) as this, this.raw() as raw:
        assert (await raw.join()).chunk_bytes == message_bytes(BIG.numel * 4, 3)


async def test_a_pull_may_begin_with_small_chunks():
    async with world(BIG) as this, this.raw() as raw:
        _, *chunks = await raw.pull(chunk_bytes=300_000)
        sizes = [len(part.chunk.data) for part in chunks]
        assert (sizes[0], sum(sizes)) == (300_000, BIG.numel * 4)


async def test_an_upload_can_be_begun_so_often_in_a_round():
    async with world(limits=replace(LIMITS, uploads=2)) as this, this.raw() as raw:
        for _ in range(2):
            async with refusal(INVALID, "TOO_FEW_BYTES"):
                await raw.send(manifest())
            # What is refused at its manifest has cost nothing, and does not begin the count anew.
            async with refusal(grpc.StatusCode.OUT_OF_RANGE, "FUTURE"):
                await raw.send(manifest(round=1))
        async with refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOADS", "at most 2"):
            await raw.push(0, torch.zeros(8))
        assert this.coordinator.status().present == ()
        async with this.raw("w01") as other:
            await other.push(0, torch.zeros(8))


async def test_the_same_parameters_can_be_had_so_often():
    async with world(limits=replace(LIMITS, downloads=3)) as this, this.raw() as raw:
        for _ in range(3):
            await raw.pull()
        async with refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "PULLS"):
            await raw.pull()
        async with this.raw("w01") as other:
            await other.pull()


async def test_whoever_joins_hears_of_the_starts_and_checkpoints_of_the_server():
    told = Terms(2, 50, 10, 3, "run-0", momentum=0.5, deadline=7.0)
    for terms in (told, None):
        async with world(terms=terms) as this, this.raw() as raw:
            assert Terms.of(await raw.join()) == (terms or Terms())


async def test_who_joins_after_the_end_is_told_of_it_and_waited_for_no_longer():
    limits = replace(LIMITS, grace=100.0)
    async with (
        world(rounds=1, limits=limits) as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        assert (await a.join()).finished == ""
        for worker in (a, b, c):
            await worker.push(0, torch.ones(8))
        for worker in (a, b, c):
            while not (said := (await worker.join()).finished):
                await asyncio.sleep(0.01)
            assert said == "all 1 rounds are done"
        await asyncio.wait_for(this.ended, patience(20))


async def test_a_worker_can_join_so_often():
    async with world(limits=replace(LIMITS, joins=3)) as this, this.raw(join=False) as raw:
        for _ in range(3):
            await raw.join()
        async with refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "JOINS"):
            await raw.join()
        await raw.pull()


async def test_the_status_counts_refusals_by_code():
    async with world() as this, this.raw() as raw:
        assert (await raw.status()).refusals == ""
        for _ in range(2):
            async with refusal(INVALID, "ORDER"):
                await raw.send(manifest(), chunk(4, ZEROS[4:]))
        async with refusal(grpc.StatusCode.OUT_OF_RANGE, "FUTURE"):
            await raw.push(1, torch.zeros(8))
        assert (await raw.status()).refusals == "FUTURE 1\nORDER 2\n"


async def test_tiny_chunks_are_taken_slowly_and_without_a_turn(monkeypatch):
    slept, released = [], []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("varangian.server.transport.uploads.asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(
        "varangian.server.transport.uploads.TokenBucket",
        lambda rate, most: TokenBucket(rate, 3, lambda: 0.0),
    )
    release = UploadTurn.release
    monkeypatch.setattr(UploadTurn, "release", lambda turn: (released.append(turn), release(turn)))
    async with world() as this, this.raw() as raw:
        data = encode_vector(torch.arange(8.0))
        await raw.send(CONTRACT.manifest(0, payload_digest(data)), *cut_chunks(data, 4))
        assert this.coordinator.status().counted == ("w00",)
    # Eight chunks: three are free, the last one is the last.
    assert slept == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert len(released) == 5


async def test_a_push_in_other_words_is_understood():
    async with world() as this, this.raw() as raw:
        vector = torch.arange(8.0)
        data = encode_vector(vector).tobytes()
        # The data before the offset, which no encoder writes and every parser reads.
        other = b"\x12\x24\x12\x20" + data + b"\x08\x00"
        await raw.send(CONTRACT.manifest(0, payload_digest(data)), other)
        assert this.coordinator.status().counted == ("w00",)


async def test_pulls_of_a_round_share_their_messages():
    async with world(BIG) as this, this.raw("w00") as a, this.raw("w01") as b:
        first, second = await asyncio.gather(a.pull(), b.pull())
        assert first == second


async def test_what_is_not_in_common_is_refused_at_join_or_said_in_the_log(caplog):
    common = SharedSettings(
        {"loss": "mse", "data": "[1, 2]"}, {"loss": "Give both one."}, frozenset({"data"})
    )
    async with world(common=common) as this, this.raw(join=False) as raw:
        other = SharedSettings({"loss": "l1"}).text
        said = "`loss` should be mse, as at the server. Found l1. Give both one."
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "COMMON", said):
            await raw.join(common=other)
        for _ in range(2):
            await raw.join(common=SharedSettings({"loss": "mse", "data": "[1, 3]"}).text)
        assert warnings_of(caplog, "service") == [
            "the data of w00 differs from that of the server: "
            "`data` should be as at the server. Found others."
        ]
        assert (await raw.status()).classes == 7


async def test_another_layout_is_refused_with_the_first_difference():
    other = Layout((("weight", (3, 2)), ("bias", (3,))))
    async with world() as this, this.raw(join=False) as raw:
        found = "should be '2 bias'", "Found '3 bias'"
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT", *found):
            await raw.join(layout=other.text)
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT"):
            await raw.join(layout="no layout")
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT", r"Found '3 \U0001f600"):
            await raw.join(layout="3 " + "\U0001f600" * 256 + "\n")
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "NOT_JOINED"):
            await raw.pull()
        await usable(this)


async def test_another_protocol_is_refused_with_both_versions():
    async with world() as this, this.raw(join=False) as raw:
        found = f"version {PROTOCOL}", "the other end 2", "Install one release"
        async with refusal(grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL", *found):
            await raw.join(protocol=2)
        await usable(this)


@pytest.mark.parametrize(
    ("identity", "status", "code"),
    [
        ({"token": "0" * 64}, grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN"),
        ({"worker": "w03"}, grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_WORKER"),
        ({"session": "x"}, grpc.StatusCode.UNAUTHENTICATED, "UNIDENTIFIED"),
    ],
)
async def test_a_stranger_is_refused_by_every_call(identity, status, code):
    async with world() as this, this.raw(join=False, **identity) as raw:
        for call in (raw.join(), raw.pull(), raw.push(0, torch.zeros(8))):
            async with refusal(status, code):
                await call
        assert this.coordinator.status().present == ()


async def test_the_name_comes_from_the_channel_and_a_token_speaks_for_one_name():
    async with world() as this, this.raw("w00") as mine, this.raw("w01") as other:
        await mine.push(0, torch.zeros(8))
        assert this.coordinator.status().counted == ("w00",)
        mine.identity[0] = ("varangian-worker", "w01")
        async with refusal(grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN"):
            await mine.push(0, torch.zeros(8))
        await other.push(0, torch.zeros(8))
        assert this.coordinator.status().counted == ("w00", "w01")


async def test_a_second_process_with_the_same_name_is_refused():
    async with world() as this, this.raw("w00"), this.raw("w00", join=False, session="f" * 32) as twin:
        async with refusal(grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN", "stop one of them"):
            await twin.join()
        async with refusal(grpc.StatusCode.ALREADY_EXISTS, "SESSION_LOST"):
            await twin.push(0, torch.zeros(8))
        assert this.coordinator.status().counted == ()


def manifest(**changes):
    made = CONTRACT.manifest(0, payload_digest(b"\x00" * 32))
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def chunk(offset, data):
    return ps_pb2.Chunk(offset=offset, data=data)


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        pytest.param([], INVALID, "MALFORMED", id="nothing"),
        pytest.param([chunk(0, ZEROS)], INVALID, "MALFORMED", id="no manifest"),
        pytest.param([b"\xff\xff"], INVALID, "MALFORMED", id="no message"),
        pytest.param([b"\x0a" + b"\x80" * 9 + b"\x01"], INVALID, "MALFORMED", id="a lying length"),
        pytest.param([manifest(run_id="x" * 70_000)], INVALID, "MALFORMED", id="a large manifest"),
        pytest.param([manifest(), manifest()], INVALID, "MALFORMED", id="two manifests"),
        pytest.param([manifest(), b""], INVALID, "MALFORMED", id="an empty message"),
        pytest.param([manifest(protocol=1), chunk(0, ZEROS)], FAILED, "PROTOCOL", id="protocol"),
        pytest.param([manifest(run_id="run-0"), chunk(0, ZEROS)], FAILED, "RUN", id="an earlier run"),
        pytest.param([manifest(numel=9), chunk(0, ZEROS)], INVALID, "NUMEL", id="numel"),
        pytest.param([manifest(numel=2**64 - 1)], INVALID, "NUMEL", id="numel near overflow"),
        pytest.param([manifest(dtype=0), chunk(0, ZEROS)], INVALID, "DTYPE", id="dtype"),
        pytest.param([manifest(sequence=1), chunk(0, ZEROS)], INVALID, "SEQUENCE", id="sequence"),
        pytest.param([manifest(content_digest=b"x")], INVALID, "DIGEST_SIZE", id="a short digest"),
        pytest.param([manifest(), chunk(4, ZEROS[4:])], INVALID, "ORDER", id="gap"),
        pytest.param([manifest(), chunk(0, ZEROS), chunk(0, ZEROS)], INVALID, "ORDER", id="twice"),
        pytest.param(
            [manifest(), chunk(0, ZEROS + b"\x00")], INVALID, "TOO_MANY_BYTES", id="a byte too many"
        ),
        pytest.param(
            [manifest(), chunk(0, ZEROS), chunk(32, b"x")], INVALID, "TOO_MANY_BYTES", id="a chunk too many"
        ),
        pytest.param(
            [manifest(), chunk(0, ZEROS), chunk(32, b"")], INVALID, "TOO_MANY_BYTES", id="empty, at the end"
        ),
        pytest.param([manifest(), chunk(0, b"")], INVALID, "CHUNK_SIZE", id="empty, in the middle"),
        pytest.param([manifest()], INVALID, "TOO_FEW_BYTES", id="short"),
        pytest.param(
            [manifest(), chunk(0, b"\x01" + ZEROS[1:])], grpc.StatusCode.DATA_LOSS, "DIGEST", id="digest"
        ),
        pytest.param(
            [manifest(round=1), chunk(0, ZEROS)], grpc.StatusCode.OUT_OF_RANGE, "FUTURE", id="future"
        ),
        pytest.param([manifest(round=2**64 - 1)], grpc.StatusCode.OUT_OF_RANGE, "FUTURE", id="far future"),
    ],
)
async def test_a_push_that_is_wrong_counts_nothing_and_may_be_tried_again(parts, status, code):
    async with world() as this, this.raw() as raw:
        async with refusal(status, code):
            await raw.send(*parts)
        assert this.coordinator.status().present == ()
        assert this.coordinator.status().faulty == {}
        await usable(this)


async def test_a_push_for_another_layout_is_refused_and_proves_nothing():
    async with world(quorum=2, f=1) as this, this.raw() as raw:
        async with refusal(FAILED, "LAYOUT"):
            await raw.send(manifest(layout_digest=b"\x00" * 16), chunk(0, ZEROS))
        assert this.coordinator.status().faulty == {}
        await raw.push(0, torch.zeros(8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_a_vector_that_is_not_finite_proves_its_sender_faulty(value):
    async with world(quorum=2, f=1) as this, this.raw() as raw:
        vector = torch.zeros(8)
        vector[5] = value
        async with refusal(INVALID, "UNSOUND", "not finite"):
            await raw.push(0, vector)
        assert set(this.coordinator.status().faulty) == {"w00"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_buffer_that_is_not_finite_proves_its_sender_faulty(value):
    """The last three numbers are buffers, which the rule does not see."""
    async with world(quorum=2, f=1, exact=3) as this, this.raw() as raw:
        assert (await raw.join()).buffers == 3
        vector = torch.zeros(8)
        vector[-1] = value
        async with refusal(INVALID, "UNSOUND", "not finite"):
            await raw.push(0, vector)
        assert set(this.coordinator.status().faulty) == {"w00"}


async def test_the_same_push_again_is_a_duplicate():
    async with world() as this, this.raw() as raw:
        await raw.push(0, torch.ones(8))
        reply = await raw.push(0, torch.ones(8))
        assert (reply.round, reply.duplicate) == (0, True)
        assert this.coordinator.status().counted == ("w00",)


async def test_of_two_vectors_for_the_same_round_the_first_counts():
    async with world(f=1) as this, this.raw() as raw:
        await raw.push(0, torch.ones(8))
        async with refusal(grpc.StatusCode.ALREADY_EXISTS, "COUNTED"):
            await raw.push(0, torch.zeros(8))
        assert (this.coordinator.status().counted, this.coordinator.status().faulty) == (("w00",), {})


async def until(happened):
    while not happened():
        await asyncio.sleep(0.01)


def client_of(this, name="w00", tries=10):
    return Client(this.address, name, this.sessions.token(name), LAYOUT, backoff=Backoff(tries=tries))


async def test_the_name_of_a_process_that_has_ended_is_free_at_once(monkeypatch):
    """Without waiting for its silence: all of its connections are closed."""
    monkeypatch.setattr("varangian.server.identity.sessions.RECONNECT_GRACE", 0.0)
    async with world() as this:
        first, impatient, second = client_of(this), client_of(this, tries=1), client_of(this)
        await first.join()
        await until(lambda: this.sessions._sessions["w00"].persistent)
        async with impatient:
            with pytest.raises(ClientError, match="SESSION_TAKEN"):
                await impatient.join()
        assert this.sessions.present == {"w00"}
        await first.close()
        await until(lambda: this.coordinator.status().absent == ("w00",))
        assert this.sessions.present == frozenset()
        async with second:
            await second.join()
            assert this.sessions.present == {"w00"}
            assert this.coordinator.status().absent == ()


async def test_a_worker_that_was_absent_is_waited_for_from_its_next_call_on(monkeypatch):
    monkeypatch.setattr("varangian.server.identity.presence.PRESENCE_CHECK_INTERVAL", 0.02)
    async with world() as this, client_of(this) as client:
        await client.join()
        await until(
            lambda: this.sessions._sessions["w00"].persistent
        )  # it makes no call by itself after that
        with monkeypatch.context() as silent:
            silent.setattr(Sessions, "present", frozenset())
            await until(lambda: this.coordinator.status().absent == ("w00",))
            monkeypatch.setattr("varangian.server.identity.presence.PRESENCE_CHECK_INTERVAL", 1000.0)
            await asyncio.sleep(0.05)  # the last look
        assert this.coordinator.status().absent == ("w00",)
        await client.pull(-1)
        assert this.coordinator.status().absent == ()


async def test_a_worker_may_decline_a_round():
    async with world() as this, client_of(this) as client:
        await client.join()
        await client.decline(0, "no memory left")
        assert this.coordinator.status().declined == {"w00": "no memory left"}
        await client.decline(7, "a round that is not open: no error")


async def test_a_push_for_a_round_that_is_over_says_which_one_is_open():
    async with world() as this, this.raw() as raw:
        await usable(this)
        with pytest.raises(grpc.RpcError, match="round 1") as caught:
            await raw.push(0, torch.zeros(8))
        assert dict(caught.value.trailing_metadata()) == {"varangian-code": "STALE", "varangian-round": "1"}
        await usable(this)


async def test_a_message_over_the_limit_is_refused_by_the_transport():
    async with world() as this, this.raw() as raw:
        large = b"\x00" * (MESSAGE_LIMIT + 1)
        for name in RPCS:
            if name == "Status":  # nobody reads what comes with it
                continue
            async with refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, None, "larger than max"):
                await (
                    raw.send(large)
                    if name == "Push"
                    else ended(raw.calls[name](large, metadata=raw.identity))
                )
        await usable(this)


async def ended(call):
    if isinstance(call, grpc.aio.UnaryStreamCall):
        return [part async for part in call]
    return await call


async def test_a_compressed_message_is_refused():
    async with world() as this, this.raw() as raw:
        request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=LAYOUT.text, software="x" * 1000)
        async with refusal(grpc.StatusCode.UNIMPLEMENTED, None):
            await raw.calls["Join"](
                request.SerializeToString(), metadata=raw.identity, compression=grpc.Compression.Gzip
            )
        await usable(this)


@settings(max_examples=examples(12), deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
async def test_garbage_never_stops_the_server(garbage):
    async with world(limits=replace(LIMITS, joins=100)) as this, this.raw() as raw:
        for data in garbage:
            for name in RPCS:
                with contextlib.suppress(grpc.RpcError):
                    await (
                        raw.send(data)
                        if name == "Push"
                        else ended(raw.calls[name](data, metadata=raw.identity))
                    )
        assert (await raw.status()).round == 0
        await usable(this)


async def test_a_stalled_upload_is_given_up_and_leaves_nothing_behind():
    async with world(limits=replace(LIMITS, idle=0.05)) as this, this.raw() as raw:
        async with refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE"):
            await raw.begin(manifest()).end()
        assert this.coordinator.status().present == ()
        await usable(this)


async def test_an_upload_whose_sender_dies_leaves_nothing_behind():
    async with world() as this, this.raw() as raw:
        call = raw.begin(manifest())
        while this.coordinator.status().present != ("w00",):
            await asyncio.sleep(0.005)
        call.cancel()
        while this.coordinator.status().present:
            await asyncio.sleep(0.005)
        await usable(this)


async def test_more_stalled_uploads_than_seats_do_not_keep_others_from_pushing():
    async with (
        world(BIG, limits=replace(LIMITS, receiving=1)) as this,
        this.raw("w00") as stalled,
        this.raw("w01") as slow,
        this.raw("w02") as honest,
    ):
        opening = this.contract.manifest(0, b"\x00" * 16)
        begun = [raw.begin(opening) for raw in (stalled, slow)]
        while len(this.coordinator.status().present) < 2:
            await asyncio.sleep(0.005)
        assert not (await honest.push(0, torch.zeros(BIG.numel))).duplicate
        assert this.coordinator.status().counted == ("w02",)
        assert not any(call.done() for call in begun)
        for call in begun:
            call.cancel()


async def test_a_worker_has_so_many_streams_and_no_more():
    limits = replace(LIMITS, streams=1)
    async with world(limits=limits) as this, this.raw() as raw, this.raw("w01") as other:
        begun = raw.begin(manifest())
        while this.coordinator.status().present != ("w00",):
            await asyncio.sleep(0.005)
        for call in (raw.push(0, torch.zeros(8)), raw.pull()):
            async with refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAMS", "at most 1"):
                await call
        await other.push(0, torch.zeros(8))
        begun.cancel()


async def test_many_half_open_uploads_of_one_worker_do_not_keep_others_from_pushing():
    async with world() as this, this.raw("w00") as greedy, this.raw("w01") as honest:
        begun = [greedy.calls["Push"](metadata=greedy.identity) for _ in range(100)]
        writes = [asyncio.ensure_future(call.write(framed(manifest()))) for call in begun]
        await honest.push(0, torch.zeros(8))
        assert "w01" in this.coordinator.status().counted
        for task in (*writes, *begun):
            task.cancel()
        await asyncio.gather(*writes, return_exceptions=True)


async def test_an_upload_ends_when_its_round_does():
    async with (
        world(BIG, rounds=3, quorum=2, deadline=0.05) as this,
        this.raw("w00") as late,
        this.raw("w01") as a,
        this.raw("w02") as b,
    ):
        data = encode_vector(torch.ones(BIG.numel))
        call = late.begin(this.contract.manifest(0, payload_digest(data)))
        while "w00" not in this.coordinator.status().present:
            await asyncio.sleep(0.005)
        await asyncio.gather(*(raw.push(0, torch.zeros(BIG.numel)) for raw in (a, b)))
        while this.coordinator.round == 0:
            await asyncio.sleep(0.005)
        async with refusal(FAILED, "STALE"):
            call.write(next(cut_chunks(data)))
            await call.end()
        assert "w00" not in this.coordinator.status().present


async def test_a_pull_ends_when_its_round_does():
    layout = Layout((("weight", (32, 1024, 1024)),))
    async with (
        world(layout, shortfall="skip", deadline=0.05) as this,
        this.raw("w00") as slow,
        this.raw("w01") as other,
    ):
        request = ps_pb2.PullRequest(run_id="run-1", after=-1).SerializeToString()
        pull = slow.calls["Pull"](request, metadata=slow.identity)
        parts = aiter(pull)
        assert ps_pb2.PullReply.FromString(await anext(parts)).manifest.round == 0
        upload = other.begin(this.contract.manifest(0, bytes(16)))
        while this.coordinator.round == 0:
            await asyncio.sleep(0.01)
        *chunks, last = [ps_pb2.PullReply.FromString(data) async for data in parts]
        assert last.HasField("again")
        assert sum(len(part.chunk.data) for part in chunks) < layout.numel * 4
        upload.cancel()


async def test_a_worker_that_dies_in_the_middle_of_a_pull_is_no_error(caplog):
    caplog.set_level("DEBUG")
    layout = Layout((("weight", (32, 1024, 1024)),))
    async with world(layout) as this:
        for name in NAMES:
            async with this.raw(name) as raw:
                request = ps_pb2.PullRequest(run_id="run-1", after=-1).SerializeToString()
                pull = raw.calls["Pull"](request, metadata=raw.identity)
                await pull.read()
                if name == "w00":
                    pull.cancel()
        await asyncio.sleep(0.05)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_upload_asks_for_a_turn_before_every_message(monkeypatch):
    asked, before_read = [], UploadTurn.before_read

    async def counted(self):
        asked.append(self)
        await before_read(self)

    monkeypatch.setattr(UploadTurn, "before_read", counted)
    async with world(BIG) as this, this.raw() as raw:
        await raw.push(0, torch.zeros(BIG.numel))
    # For each of the two chunks, and for the end of the stream.
    assert len(asked) == 3
    assert len(set(asked)) == 1


async def test_a_pull_without_a_later_round_says_again():
    async with world() as this, this.raw() as raw:
        (part,) = await raw.pull(0)
        assert part.HasField("again")


async def test_everyone_who_joined_hears_of_the_end():
    async with (
        world(rounds=1, limits=replace(LIMITS, grace=20.0)) as this,
        this.raw("w00") as a,
        this.raw("w01") as b,
        this.raw("w02") as c,
    ):
        for raw in (a, b, c):
            await raw.push(0, torch.zeros(8))
        for raw in (a, b):
            (part,) = await raw.pull_later(0)
            assert part.finished.reason == "all 1 rounds are done"
        assert not this.ended.done()
        await c.pull(0)
        assert await this.ended == "all 1 rounds are done"


async def test_a_stop_is_heard_too():
    async with world(limits=replace(LIMITS, patience=20.0, grace=20.0)) as this, this.raw() as raw:
        pull = asyncio.create_task(raw.pull(0))
        this.stop.set()
        (part,) = await pull
        assert part.finished.reason == "stopped on request"
        assert await this.ended == "stopped on request"


async def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"127\.0\.0\.1:{port} .*set `server.port`"):
            await listen(port)


async def test_grpc_itself_does_not_share_a_port(monkeypatch):
    async with world() as this:
        monkeypatch.setattr("varangian.server.transport.grpc_server.probe", lambda *address: None)
        second = grpc.aio.server(options=options(3))
        with pytest.raises(PortInUse):
            bind(second, "127.0.0.1", int(this.address.rpartition(":")[2]))
        await second.stop(None)


async def test_an_address_of_another_machine_is_one_sentence():
    with pytest.raises(OSError, match=r"should be able to listen on 192\.0\.2\.1:0"):
        await listen(0, host="192.0.2.1")


async def listen(port, host="127.0.0.1"):
    async with world() as this:
        await serve(
            this.coordinator,
            this.sessions,
            LAYOUT,
            run_id="x",
            host=host,
            port=port,
            ready=lambda _: pytest.fail("it listens"),
            stop=this.stop,
        )


EVIL = "\x1b[2J\x1b]0;owned\x07\r\nINFO all is well\u202e" + "x" * 5000


async def test_what_a_worker_says_is_one_printable_line_of_the_log_and_of_the_record(caplog):
    caplog.set_level("INFO", "varangian")
    async with world() as this, this.raw(join=False) as raw, this.raw("w01") as other:
        await raw.join(software=EVIL)
        async with refusal(FAILED, "LAYOUT"):
            await raw.join(layout=EVIL)
        async with refusal(FAILED, "RUN"):
            await other.send(manifest(run_id=EVIL), chunk(0, ZEROS))
        await this.coordinator.decline("w00", 0, EVIL)
        said = this.coordinator.status()
        assert said.declined["w00"].isprintable()
        assert said.sentence.isprintable()
        assert len(said.declined["w00"]) <= 200
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("varangian")]
    assert sum("owned" in line for line in lines) == 3
    assert all(line.isprintable() and len(line) < 1200 for line in lines)


async def test_a_refusal_is_logged_once_for_each_worker_and_code(caplog):
    async with world() as this, this.raw() as raw:
        for _ in range(3):
            async with refusal(INVALID, "ORDER"):
                await raw.send(manifest(), chunk(4, b"\x1b[31m"))
    (line,) = warnings_of(caplog, "refusals")
    assert line.startswith("refused w00: ORDER")
