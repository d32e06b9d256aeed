"""Payloads beside gRPC, against a server that does what a script says with its data port."""

import asyncio
import contextlib
import secrets
import socket
import threading
from dataclasses import replace

import grpc
import pytest
import torch
from tests.extent import patience
from tests.protos.data_channel.book import SEGMENT, Book, encrypted_size
from tests.worker.transport.script import AGAIN, BIG, LAYOUT, VECTOR, Script, joined, pulls, refuse

from varangian.protos import ps_pb2
from varangian.protos.contract import check_dtype
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.payloads.encoding import Encoding, encode_vector, payload_digest, rounding_seed
from varangian.worker.transport.client import ClientError, Receipt
from varangian.worker.transport.payloads import data_channel, data_connection

STALE = refuse(grpc.StatusCode.FAILED_PRECONDITION, "STALE")
LARGE = torch.arange(BIG.numel, dtype=torch.float32)


class Wharf(Script):
    """A server with a lane. `berths` has each connection, `payloads` what came over them."""

    def __init__(self, layout=LAYOUT, vector=VECTOR, **more):
        super().__init__(layout, **more)
        self.vector, self.berths, self.payloads, self._tickets = vector, [], [], {}
        self.steps["Pull"], self.steps["Push"] = [self.carried], [self.taken]

    async def landed(self, reader, writer):
        self.berths.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                found = self._tickets.pop((await reader.readexactly(16)).hex())
                over = asyncio.get_running_loop().create_future()
                found.set_result((reader, writer, over))
                await over
        writer.close()

    @contextlib.asynccontextmanager
    async def line(self, context, key=b""):
        """The connection that shows the ticket of this call."""
        ticket = secrets.token_hex(16)
        found = self._tickets[ticket] = asyncio.get_running_loop().create_future()
        await context.send_initial_metadata((("varangian-ready", ticket + key.hex()),))

        async def berth():
            found_now = await found
            berths.append(found_now)
            return found_now[:2]

        berths = []
        try:
            yield berth
        finally:
            for _, _, over in berths:
                over.set_result(None)

    async def taken(self, requests, context):
        first = await anext(requests)
        encoding = Encoding(first.manifest.numel, check_dtype(first.manifest.dtype), self.buffers)
        async with self.line(context) as berth:
            reader, _ = await berth()
            self.payloads.append(await reader.readexactly(encoding.size))
        self.seen["Push"][-1] = [first, *[part async for part in requests]]
        return ps_pb2.PushReply(round=first.manifest.round)

    async def carried(self, request, context):
        await self.some(None)(request, context)

    def some(self, count, then=None, **changes):
        """A download of so many bytes."""

        async def step(request, context):
            async with self.line(context) as berth:
                data = encode_vector(self.vector).tobytes()
                manifest = self.contract.manifest(4, payload_digest(data))
                for field, value in changes.items():
                    setattr(manifest, field, value)
                await context.write(ps_pb2.PullReply(manifest=manifest))
                _, writer = await berth()
                writer.write(data[:count])
                await writer.drain()
                if then is not None:
                    await then(writer, context)

        return step


@contextlib.asynccontextmanager
async def client_at(wharf, **more):
    """A worker that has joined."""
    server = await asyncio.start_server(wharf.landed, "127.0.0.1", 0)
    wharf.data_port = server.sockets[0].getsockname()[1]
    try:
        async with joined(wharf, **more) as client:
            yield client
    finally:
        server.close()
        for writer in wharf.berths:
            writer.transport.abort()


def lanes(wharf):
    """Which calls offered to use the lane."""
    return ["varangian-lane" in metadata for metadata in wharf.metadata]


async def test_payloads_travel_both_ways_on_one_connection():
    wharf = Wharf(BIG, LARGE)
    async with client_at(wharf) as client:
        first = await client.pull(-1)
        assert torch.equal(first.parameters, LARGE)
        where = first.parameters.data_ptr()
        assert await client.push(4, LARGE + 1) == Receipt(True, round=4)
        assert (await client.pull(-1)).parameters.data_ptr() == where
        assert await client.push(4, LARGE) == Receipt(True, round=4)
        assert client.naps == []
    data = [encode_vector(vector).tobytes() for vector in (LARGE + 1, LARGE)]
    assert wharf.payloads == data
    assert [part.WhichOneof("part") for part in wharf.seen["Push"][0]] == ["manifest", "seal"]
    assert wharf.seen["Push"][0][1].seal.content_digest == payload_digest(data[0])
    assert len(wharf.berths) == 1
    assert lanes(wharf) == [False, True, True, True, True]


async def test_numbers_are_written_as_the_server_wants_them():
    wharf = Wharf(dtype=ps_pb2.DTYPE_BFLOAT16)
    async with client_at(wharf) as client:
        await client.push(4, VECTOR / 3)
    assert wharf.payloads == [encode_vector(VECTOR / 3, "bfloat16").tobytes()]
    assert wharf.seen["Push"][0][1].seal.content_digest == payload_digest(wharf.payloads[0])


async def test_blocks_are_rounded_by_worker_and_round():
    wharf = Wharf(dtype=ps_pb2.DTYPE_INT8)
    wharf.buffers = 3
    encoding = Encoding(VECTOR.numel(), "int8", 3)
    async with client_at(wharf) as client:
        for round in (4, 5, 4):
            await client.push(round, VECTOR / 3)
        name = client.name
    found = [encoding.decode(payload) for payload in wharf.payloads]
    wanted = [bytes(encoding.encode(VECTOR / 3, rounding_seed(name, round))) for round in (4, 5, 4)]
    assert wharf.payloads == wanted
    assert torch.equal(found[0][-3:], VECTOR[-3:] / 3)


async def test_a_server_may_want_chunks_all_the_same():
    wharf = Wharf()
    wharf.steps["Push"], wharf.steps["Pull"] = [wharf.counted], [wharf.parameters]
    async with client_at(wharf) as client:
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)
        assert (await client.push(4, VECTOR)).counted
        wharf.steps["Push"] = [wharf.taken]
        assert (await client.push(4, VECTOR)).counted
    assert lanes(wharf) == [False, True, True, True]
    assert len(wharf.berths) == len(wharf.payloads) == 1


@pytest.mark.parametrize("ready", ["2", "f" * 31, "g" * 32, "F" * 32, "f" * 34, "ff " * 16])
async def test_something_else_than_a_ticket_is_final(ready):
    wharf = Wharf()

    async def push(requests, context):
        await context.send_initial_metadata((("varangian-ready", ready),))
        await asyncio.sleep(3600)

    async def pull(request, context):
        await context.send_initial_metadata((("varangian-ready", ready),))
        await wharf.send(context, VECTOR)

    wharf.steps["Push"], wharf.steps["Pull"] = [push], [pull]
    async with client_at(wharf) as client:
        with pytest.raises(ClientError, match=f"Found '{ready[:32]}'? where a ticket of 16 bytes"):
            await client.push(4, VECTOR)
        with pytest.raises(ClientError, match="where a ticket of 16 bytes"):
            await client.pull(-1)


async def test_a_ticket_that_nobody_asked_for_is_final():
    wharf = Wharf()
    async with joined(wharf) as client:
        with pytest.raises(ClientError, match="where a ticket of 16 bytes should be"):
            await client.push(4, VECTOR)


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize("first", [0, 1, 1 << 20])
async def test_a_refusal_in_the_middle_of_a_push_is_an_answer(first, hangs_up, monkeypatch):
    monkeypatch.setattr(data_channel, "REFUSAL_WAIT", patience(20))
    wharf = Wharf(BIG, LARGE)

    async def refused(requests, context):
        async with wharf.line(context) as berth:
            reader, writer = await berth()
            await reader.readexactly(first)
            if hangs_up:
                writer.transport.abort()
                await asyncio.sleep(0.05)
            await STALE(requests, context)

    wharf.steps["Push"] = [refused, refused, wharf.taken]
    async with client_at(wharf) as client:
        for _ in range(2):
            assert await client.push(4, LARGE) == Receipt(False, "STALE", "because", 5)
        assert (await client.push(4, LARGE)).counted
        assert client.naps == []
    # It is no fault of the lane; but each of these connections was of no use any more.
    assert lanes(wharf) == [False, True, True, True]
    assert len(wharf.berths) == 3


async def test_a_refusal_of_the_manifest_leaves_the_line_as_it_is():
    wharf = Wharf()
    wharf.steps["Push"].insert(0, STALE)
    async with client_at(wharf) as client:
        assert (await client.push(4, VECTOR)).code == "STALE"
        assert (await client.push(4, VECTOR)).counted
    assert len(wharf.berths) == 1


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_a_pull_that_is_overtaken_asks_again(hangs_up, monkeypatch):
    monkeypatch.setattr(data_channel, "REFUSAL_WAIT", patience(20))
    wharf = Wharf(BIG, LARGE)

    async def overtaken(writer, context):
        if hangs_up:
            writer.transport.abort()
        await context.write(ps_pb2.PullReply(**AGAIN))
        if not hangs_up:
            await asyncio.sleep(3600)

    wharf.steps["Pull"] = [wharf.some(5_000_000, overtaken)] * 2 + [wharf.carried]
    async with client_at(wharf) as client:
        assert torch.equal((await client.pull(3)).parameters, LARGE)
        assert client.naps == []
    assert lanes(wharf) == [False, True, True, True]


async def test_a_pull_that_waits_may_be_answered_otherwise():
    wharf = Wharf()
    wharf.steps["Pull"] = [pulls(AGAIN), wharf.carried, pulls({"finished": ps_pb2.Finished(reason="done")})]
    async with client_at(wharf) as client:
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert (await client.pull(4)).reason == "done"
    assert len(wharf.berths) == 1


async def test_a_message_in_place_of_the_end_of_a_pull_is_final():
    wharf = Wharf()

    async def chatty(writer, context):
        await wharf.send(context, VECTOR)

    wharf.steps["Pull"] = [wharf.some(None, chatty)]
    async with client_at(wharf) as client:
        with pytest.raises(ClientError, match="Found a message where a download has none"):
            await client.pull(3)


async def test_a_damaged_download_is_tried_again():
    wharf = Wharf()
    wharf.steps["Pull"].insert(0, wharf.some(None, content_digest=bytes(16)))
    async with client_at(wharf) as client:
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert len(client.naps) == 1


async def broken(writer, context):
    writer.transport.abort()


@pytest.mark.parametrize("late", [False, True])
async def test_after_two_broken_lines_there_are_chunks_for_a_while(late, monkeypatch, caplog):
    """Whether the call ends then or goes on as if nothing had happened."""
    monkeypatch.setattr(data_channel, "REFUSAL_WAIT", 0.01)

    async def unaware(writer, context):
        await broken(writer, context)
        await asyncio.sleep(3600)

    caplog.set_level("INFO", "varangian.worker.transport.payloads.data_channel")
    wharf = Wharf()
    wharf.steps["Pull"] = [wharf.some(9, unaware if late else broken)] * 2 + [wharf.parameters]
    async with client_at(wharf) as client:
        for _ in range(3):
            assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert len(client.naps) == 2
        assert lanes(wharf) == [False, True, True, False, False, False]
        monkeypatch.setattr(data_channel, "monotonic", lambda: data_connection.monotonic() + 61)
        wharf.steps["Pull"] = [wharf.carried]
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
    assert lanes(wharf)[-1]
    assert len(wharf.berths) == 3
    (message,) = caplog.messages
    assert message.startswith("payloads travel over gRPC: data port ")


async def test_one_broken_line_now_and_then_changes_nothing():
    wharf = Wharf()
    wharf.steps["Pull"] = [wharf.some(9, broken), wharf.carried, wharf.some(9, broken), wharf.carried]
    async with client_at(wharf) as client:
        for _ in range(2):
            assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert len(client.naps) == 2
    assert lanes(wharf) == [False, True, True, True, True]


async def test_a_push_whose_line_broke_is_sent_again_with_its_digest_first(monkeypatch):
    monkeypatch.setattr(data_channel, "REFUSAL_WAIT", 0.01)
    wharf = Wharf(BIG, LARGE)

    async def unaware(requests, context):
        async with wharf.line(context) as berth:
            _, writer = await berth()
            writer.transport.abort()
            await asyncio.sleep(3600)

    wharf.steps["Push"].insert(0, unaware)
    async with client_at(wharf) as client:
        assert (await client.push(4, LARGE)).counted
        assert len(client.naps) == 1
    (first,) = wharf.seen["Push"][-1]
    assert wharf.payloads == [encode_vector(LARGE).tobytes()]
    assert first.manifest.content_digest == payload_digest(wharf.payloads[0])


async def test_a_port_that_is_closed_is_tried_once_and_then_left_for_a_while(monkeypatch, caplog):
    caplog.set_level("INFO", "varangian.worker.transport.payloads.data_channel")
    wharf = Wharf()
    wharf.steps["Push"], wharf.steps["Pull"] = [wharf.counted], [wharf.parameters]
    async with client_at(wharf) as client:
        client._connection.data_channel.set_port(9)
        tried = []
        monkeypatch.setattr(
            data_channel,
            "open_connection",
            lambda *where: tried.append(where) or data_connection.open_connection(*where),
        )
        for _ in range(2):
            assert torch.equal((await client.pull(3)).parameters, VECTOR)
            assert (await client.push(4, VECTOR)).counted
        assert tried == [("127.0.0.1", 9)]
        monkeypatch.setattr(data_channel, "monotonic", lambda: data_connection.monotonic() + 61)
        assert (await client.push(4, VECTOR)).counted
        assert len(tried) == 2
        assert client.naps == []
    assert not any(lanes(wharf))
    (message,) = caplog.messages
    assert message.startswith("payloads travel over gRPC: data port 9 of 127.0.0.1: ")


@pytest.mark.parametrize("port", [0, 65536, 2**32 - 1])
async def test_a_server_without_a_data_port_gets_chunks(port):
    script = Script()
    script.data_port = port
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
    assert not any(lanes(script))


async def test_a_line_that_the_server_has_closed_meanwhile_is_replaced():
    wharf = Wharf()
    async with client_at(wharf) as client:
        await client.push(4, VECTOR)
        wharf.berths[0].transport.abort()
        await asyncio.sleep(0.05)
        assert (await client.push(4, VECTOR)).counted
        assert client.naps == []
    assert len(wharf.berths) == 2


async def test_a_line_that_the_server_closes_while_a_pull_waits_is_replaced():
    wharf = Wharf()

    async def waited(request, context):
        wharf.berths[0].transport.abort()
        await asyncio.sleep(0.05)
        await wharf.carried(request, context)

    wharf.steps["Pull"] = [waited]
    async with client_at(wharf) as client:
        await client.push(4, VECTOR)
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert client.naps == []
    assert len(wharf.berths) == 2


async def test_a_line_is_not_kept_for_long(monkeypatch):
    monkeypatch.setattr(data_connection, "USED", 0.0)
    wharf = Wharf()
    async with client_at(wharf) as client:
        for _ in range(3):
            assert (await client.push(4, VECTOR)).counted
    assert len(wharf.berths) == 3


async def test_calls_at_the_same_time_have_lines_of_their_own():
    wharf = Wharf(BIG, LARGE)
    async with client_at(wharf) as client:
        for _ in range(2):
            pulled, *receipts = await asyncio.gather(
                client.pull(3), client.push(4, LARGE), client.push(4, LARGE)
            )
            assert torch.equal(pulled.parameters, LARGE)
            assert all(receipt.counted for receipt in receipts)
    assert len(wharf.berths) == 4, "one of three is not kept"


async def test_silence_on_the_lane_ends_a_call():
    wharf = Wharf(BIG, LARGE)

    async def deaf(requests, context):
        async with wharf.line(context) as berth:
            await berth()
            await asyncio.sleep(3600)

    wharf.steps["Push"].insert(0, deaf)
    wharf.steps["Pull"].insert(0, wharf.some(9, lambda writer, context: asyncio.sleep(3600)))
    # On a machine with other things to do, an answer may be taken for silence too.
    async with client_at(wharf, tries=20, idle=0.5) as client:
        assert (await client.push(4, LARGE)).counted
        assert torch.equal((await client.pull(3)).parameters, LARGE)
        assert len(client.naps) >= 2


async def test_slow_is_not_silent():
    wharf = Wharf(BIG, LARGE)

    async def slowly(requests, context):
        first = await anext(requests)
        async with wharf.line(context) as berth:
            reader, _ = await berth()
            for _ in range(8):
                await asyncio.sleep(patience(0.07))
                await reader.readexactly(4 << 20)
        async for _ in requests:
            pass
        return ps_pb2.PushReply(round=first.manifest.round)

    wharf.steps["Push"] = [slowly]
    # On a machine with other things to do, one part may take as long, but not in each of many tries.
    async with client_at(wharf, tries=20, idle=patience(0.5)) as client:
        assert (await client.push(4, LARGE)).counted


async def test_a_call_that_is_given_up_leaves_no_line_and_no_thread():
    # Those of other tests may be there for as long as the session lasts.
    others = {thread for thread in threading.enumerate() if thread.name.startswith("varangian-worker-data")}
    users = data_connection.THE_THREADS._users
    wharf = Wharf(BIG, LARGE)
    begun = asyncio.Event()

    async def stuck(writer, context):
        begun.set()
        await asyncio.sleep(3600)

    wharf.steps["Pull"] = [wharf.some(9_000_000, stuck)]
    async with client_at(wharf) as client:
        pulling = asyncio.ensure_future(client.pull(3))
        await begun.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert (await client.push(4, LARGE)).counted
        assert len(wharf.berths) == 2
    assert data_connection.THE_THREADS._users == users
    for thread in threading.enumerate():
        if thread.name.startswith("varangian-worker-data") and not others:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


@contextlib.asynccontextmanager
async def listening(host="127.0.0.1", **options):
    """A port where nothing is said; yields its number."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), host, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)
        for writer in writers:
            writer.transport.abort()


def stand_in(monkeypatch, *addresses):
    """What each name stands for."""

    async def getaddrinfo(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
async def test_the_first_address_that_answers_is_taken(silent, monkeypatch):
    # Half of it is spent on the silent address, and all of it at the end; the rest is for a busy machine.
    monkeypatch.setattr(data_connection, "PATIENCE", patience(6.0))
    with socket.socket() as other, contextlib.ExitStack() as stack:
        other.bind(("127.0.0.1", 0))
        if silent:
            # Whoever comes after these is not even refused.
            other.listen(0)
            for _ in range(2):
                early = stack.enter_context(socket.socket())
                early.setblocking(False)
                early.connect_ex(other.getsockname())
        async with listening() as port:
            stand_in(monkeypatch, other.getsockname(), ("127.0.0.1", port))
            connected = await data_connection.open_connection("parameter-server.test", port)
            assert connected.usable
            connected.close()
            assert not connected.usable
        stand_in(monkeypatch, other.getsockname())
        with pytest.raises(TimeoutError if silent else ConnectionRefusedError):
            await data_connection.open_connection("parameter-server.test", port)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    path = tmp_path_factory.mktemp("bundles")
    authority = Authority.create(path / "ours", days=30)
    authority.issue("server", Role.SERVER, days=10)
    authority.issue("w00", Role.WORKER, days=10)
    return path


def shown(path):
    bundle = Bundle.load(path / "server")
    return {
        "proof": Bundle.load(path / "w00"),
        "credentials": grpc.ssl_server_credentials([(bundle.key, bundle.certificate)], bundle.ca, True),
    }


class Sealing(Wharf):
    """It encrypts. `raw` came over its lane, `changed` changes what leaves, `said` lies about it."""

    def __init__(self, *layout, changed=lambda data: data, **said):
        super().__init__(*layout)
        self.raw, self.changed, self.said = [], changed, said

    async def taken(self, requests, context):
        first, key = await anext(requests), secrets.token_bytes(32)
        size = first.manifest.numel * 4
        async with self.line(context, key=key) as berth:
            reader, _ = await berth()
            self.raw.append(await reader.readexactly(encrypted_size(size)))
        transfer = AssociatedData.of("push", first.manifest, "w00", size)
        self.payloads.append(Book(key, transfer.associated()).decrypted(self.raw[-1]))
        self.seen["Push"][-1] = [first, *[part async for part in requests]]
        return ps_pb2.PushReply(round=first.manifest.round)

    async def carried(self, request, context):
        key, data = secrets.token_bytes(32), encode_vector(self.vector).tobytes()
        async with self.line(context, key=key) as berth:
            manifest = self.contract.manifest(4, payload_digest(data))
            await context.write(ps_pb2.PullReply(manifest=manifest))
            _, writer = await berth()
            transfer = replace(AssociatedData.of("pull", manifest, "w00", len(data)), **self.said)
            writer.write(self.changed(Book(key, transfer.associated()).encrypted(data)))
            await writer.drain()


async def test_over_tls_payloads_are_sealed(bundles):
    wharf, path = Sealing(BIG, LARGE), bundles / "ours"
    async with client_at(wharf, **shown(path)) as client:
        for _ in range(2):
            assert torch.equal((await client.pull(3)).parameters, LARGE)
            assert (await client.push(4, LARGE)).counted
        assert len(wharf.berths) == 1
        await client._connection.reconnect()
        assert (await client.push(4, LARGE)).counted
        assert len(wharf.berths) == 2
        assert client.naps == []
    plain = encode_vector(LARGE).tobytes()
    assert wharf.payloads == [plain] * 3
    assert not any(plain[at : at + 64] in raw for raw in wharf.raw for at in (1 << 10, 1 << 20, 5 << 20))
    assert len(set(wharf.raw)) == 3


async def test_over_tls_a_ticket_without_a_key_is_final_and_nothing_is_sent(bundles):
    wharf, path = Wharf(), bundles / "ours"
    async with client_at(wharf, **shown(path)) as client:
        with pytest.raises(ClientError, match="where a ticket of 48 bytes should be"):
            await client.push(4, VECTOR)
    assert wharf.payloads == []


def test_no_error_shows_a_key():
    use = data_channel.LeasedConnection(object(), True, None)
    with pytest.raises(Refused) as found:
        use.parse_ready("f" * 32 + "E" * 64)
    assert "E" not in str(found.value)
    assert "b'k" not in repr(use.parse_ready("6b" * 48)).partition("ticket=")[2][20:]


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


async def test_a_model_that_was_changed_on_its_way_is_pulled_again(bundles):
    def late(data):
        return data[SEGMENT:] + bytes(SEGMENT)

    def whole(data):
        return data

    changes = iter([flipped, whole, late, whole])
    wharf = Sealing(BIG, LARGE, changed=lambda data: next(changes)(data))
    async with client_at(wharf, **shown(bundles / "ours")) as client:
        for naps in (1, 2):
            assert torch.equal((await client.pull(3)).parameters, LARGE)
            assert len(client.naps) == naps
    # A line is of no use after that.
    assert len(wharf.berths) == 3


@pytest.mark.parametrize(
    "said",
    [{"direction": "push"}, {"round": 5}, {"worker": "w01"}, {"run": "run-2"}],
    ids=lambda said: "".join(said),
)
async def test_a_model_of_another_transfer_is_not_taken(bundles, said, monkeypatch):
    """Though it has the right key, and is the right model."""
    monkeypatch.setattr(data_channel, "MOST_FAILURES", 100)
    wharf = Sealing(LAYOUT, VECTOR, **said)
    async with client_at(wharf, **shown(bundles / "ours")) as client:
        with pytest.raises(ClientError, match="not encrypted with the key of its call"):
            await client.pull(3)


async def test_where_payloads_cannot_be_sealed_they_travel_over_grpc(bundles, monkeypatch, caplog):
    monkeypatch.setattr(data_channel, "why_unavailable", lambda: "this is the reason")

    caplog.set_level("INFO", "varangian.worker.transport.payloads.data_channel")
    wharf = Sealing()
    wharf.steps["Push"] = [wharf.counted]
    async with client_at(wharf, **shown(bundles / "ours")) as client:
        for _ in range(2):
            assert (await client.push(4, VECTOR)).counted
    assert not any(lanes(wharf))
    assert wharf.berths == []
    (said,) = [message for message in caplog.messages if "payloads travel over gRPC" in message]
    assert "this is the reason" in said
