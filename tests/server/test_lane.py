"""Connections beside gRPC, over real sockets: what comes to a call, and what ends at the door."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
import struct
import threading

import pytest

from varangian.protos.bundle import Role, contexts
from varangian.protos.lane import Cargo, LineError
from varangian.server import lane as lanes
from varangian.server.lane import Lane, Patience
from varangian.server.listen import ListenError, PortInUse
from varangian.server.revoked import fingerprint
from varangian.server.streams import Limits
from varangian.server.tls import Security

HOST = "127.0.0.1"
LIMITS = Limits()
HELLO = b"hello"


def authority_in(path):
    pytest.importorskip("cryptography")
    from varangian.server.authority import Authority

    made = Authority.create(path, days=30)
    made.issue("server", Role.SERVER, hosts=[HOST], days=10)
    for name in ("w00", "w01"):
        made.issue(name, Role.WORKER, days=10)
    return made


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """An authority with a server and two workers; nothing may be changed in it."""
    return authority_in(tmp_path_factory.mktemp("lane") / "ours").path


@pytest.fixture
def authority(tmp_path):
    """One that a test may change."""
    return authority_in(tmp_path / "ours")


@pytest.fixture(params=["plain", "TLS"])
def folder(request):
    """Bundles, or None for connections without TLS."""
    return None if request.param == "plain" else request.getfixturevalue("certified")


@pytest.fixture(autouse=True)
def _nothing_is_left(caplog):
    """No task, thread or file of a lane outlives it."""
    caplog.set_level(logging.DEBUG)
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect(1)
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
    assert [one.name for one in threading.enumerate() if one.name.startswith("varangian-lane")] == []
    assert len(os.listdir("/proc/self/fd")) == before


def lane_of(folder, patience, limits=LIMITS):
    if folder is None:
        return Lane(limits, None, None, patience)
    security = Security(folder)
    return Lane(limits, security.doorman, security.context, patience)


@contextlib.asynccontextmanager
async def opened(folder=None, lane=None, **patience):
    """A lane that listens."""
    lane = lane or lane_of(folder, Patience(**patience))
    try:
        await lane.listen(HOST, 0)
        yield lane
    finally:
        await lane.close()


class Caller:
    """The other end."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def say(self, data):
        self.writer.write(data)

    def show(self, ticket, payload=b""):
        self.say(bytes.fromhex(ticket.text) + payload)

    async def ended(self):
        """Wait for the end of the connection; what came before it."""
        try:
            return await self.reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""

    @property
    def certificate(self):
        return self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)


def client(folder, name="w00"):
    return None if folder is None else contexts(folder / name)[1]


@contextlib.asynccontextmanager
async def calling(lane, context=None):
    reader, writer = await asyncio.open_connection(HOST, lane.port, ssl=context)
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
        # Whoever was told that the connection broke hears it here once more.
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def use(lane, caller, worker="w00", payload=HELLO):
    """One call from its ticket to its end."""
    with lane.ticket(worker) as ticket:
        caller.show(ticket, payload)
        line = await ticket.line()
        assert await line.exactly(len(payload)) == payload
        ticket.complete()


def run(scenario):
    """To its end, but not for ever."""

    async def limited():
        async with asyncio.timeout(100):
            return await scenario

    return asyncio.run(limited())


def said(caplog, level=logging.WARNING):
    ours = [one for one in caplog.records if one.name == lanes.__name__]
    return [one.getMessage() for one in ours if one.levelno == level]


def test_a_connection_serves_one_call_after_the_other_both_ways(folder, caplog):
    async def scenario():
        async with opened(folder) as lane, calling(lane, client(folder)) as caller:
            await use(lane, caller)
            with lane.ticket("w00") as ticket:
                caller.show(ticket)
                line, cargo = await ticket.line(), Cargo([memoryview(bytes(100_000))])
                while not cargo.done:
                    await line.writable()
                    await line.send(cargo)
                assert await caller.reader.readexactly(100_000) == bytes(100_000)
                ticket.complete()
            await use(lane, caller)

    run(scenario())
    assert said(caplog) == []


def test_two_workers_find_their_own_calls(folder):
    async def scenario():
        async with (
            opened(folder) as lane,
            calling(lane, client(folder)) as one,
            calling(lane, client(folder, "w01")) as other,
        ):
            with lane.ticket("w00") as first, lane.ticket("w01") as second:
                other.show(second, b"w01")
                one.show(first, b"w00")
                assert await (await first.line()).exactly(3) == b"w00"
                assert await (await second.line()).exactly(3) == b"w01"

    run(scenario())


def test_a_ticket_may_come_in_pieces(folder):
    async def scenario():
        async with opened(folder) as lane, calling(lane, client(folder)) as caller:
            with lane.ticket("w00") as ticket:
                for byte in bytes.fromhex(ticket.text):
                    caller.say(bytes([byte]))
                    await asyncio.sleep(0)
                await ticket.line()

    run(scenario())


def test_an_unknown_ticket_ends_the_connection_and_is_logged_once(folder, caplog):
    async def scenario():
        async with opened(folder) as lane:
            for _ in range(3):
                async with calling(lane, client(folder)) as caller:
                    caller.say(bytes(16) + HELLO)
                    assert await caller.ended() == b""

    run(scenario())
    who = "w00" if folder else "a stranger"
    (line,) = said(caplog)
    assert line.startswith(f"lane: refused {who}: TICKET ")
    assert len(said(caplog, logging.DEBUG)) == 2


def test_a_ticket_counts_once(folder):
    async def scenario():
        async with (
            opened(folder) as lane,
            calling(lane, client(folder)) as caller,
            calling(lane, client(folder)) as copy,
        ):
            with lane.ticket("w00") as ticket:
                caller.show(ticket)
                line = await ticket.line()
                copy.show(ticket)
                await copy.ended()
                caller.say(HELLO)
                assert await line.exactly(5) == HELLO

    run(scenario())


def test_a_ticket_counts_until_its_call_has_ended(folder):
    async def scenario():
        async with opened(folder) as lane, calling(lane, client(folder)) as caller:
            with lane.ticket("w00") as ticket:
                pass
            caller.show(ticket)
            await caller.ended()
            with pytest.raises(LineError):
                await ticket.line()
            with pytest.raises(RuntimeError), ticket:
                pass

    run(scenario())


def test_a_call_that_ends_halfway_ends_its_connection(folder):
    async def scenario():
        async with opened(folder) as lane, calling(lane, client(folder)) as caller:
            with contextlib.suppress(ZeroDivisionError), lane.ticket("w00") as ticket:
                caller.show(ticket, HELLO)
                await ticket.line()
                raise ZeroDivisionError
            await caller.ended()

    run(scenario())


def test_whoever_hangs_up_ends_only_its_own_call(folder):
    async def scenario():
        async with opened(folder) as lane:
            with lane.ticket("w00") as ticket:
                async with calling(lane, client(folder)) as caller:
                    caller.show(ticket)
                    line = await ticket.line()
                with pytest.raises(LineError):
                    await line.exactly(1)
            async with calling(lane, client(folder)) as caller:
                caller.say(b"half")
            async with calling(lane, client(folder)) as caller:
                await use(lane, caller)

    run(scenario())


def test_more_than_the_payload_ends_the_connection_after_it(folder):
    async def scenario():
        async with opened(folder) as lane, calling(lane, client(folder)) as caller:
            with lane.ticket("w00") as ticket:
                caller.show(ticket, HELLO + bytes(1000))
                assert await (await ticket.line()).exactly(5) == HELLO
                ticket.complete()
            await caller.ended()

    run(scenario())


def test_the_ticket_of_another_worker_ends_the_connection_and_stays_good(certified, caplog):
    async def scenario():
        async with opened(certified) as lane, calling(lane, client(certified)) as owner:
            with lane.ticket("w00") as ticket:
                async with calling(lane, client(certified, "w01")) as thief:
                    thief.show(ticket)
                    await thief.ended()
                owner.show(ticket)
                await ticket.line()

    run(scenario())
    assert said(caplog)[0].startswith("lane: refused w01: TICKET ")


def test_without_tls_whoever_has_the_ticket_is_its_worker():
    async def scenario():
        async with opened() as lane, calling(lane) as caller:
            await use(lane, caller, "w00")
            await use(lane, caller, "w01")

    run(scenario())


def refused_at_the_door(folder, name, context=None):
    """Whose certificate is worth nothing is not asked for a ticket."""

    async def scenario():
        async with opened(folder) as lane, calling(lane, context or client(folder, name)) as caller:
            await caller.ended()

    run(scenario())


def test_a_certificate_of_another_role_is_refused(certified, caplog):
    refused_at_the_door(certified, "server")
    assert said(caplog)[0].startswith("lane: refused a stranger: ROLE ")


def test_a_revoked_certificate_is_refused(authority, caplog):
    authority.revoke("w00")
    refused_at_the_door(authority.path, "w00")
    assert said(caplog)[0].startswith("lane: refused w00: REVOKED ")


def test_a_certificate_that_is_revoked_later_shows_no_more_tickets(authority):
    async def scenario():
        async with opened(authority.path) as lane, calling(lane, client(authority.path)) as caller:
            await use(lane, caller)
            authority.revoke("w00")
            with lane.ticket("w00") as ticket:
                caller.show(ticket)
                await caller.ended()

    run(scenario())


def test_a_certificate_of_another_authority_is_refused(certified, tmp_path, caplog):
    refused_at_the_door(certified, "w00", client(authority_in(tmp_path / "theirs").path))
    assert said(caplog)[0].startswith("lane: refused a stranger: TLS ")


def test_who_shows_no_certificate_is_refused(certified, caplog):
    refused_at_the_door(certified, "w00", contexts(None)[1])
    assert said(caplog)[0].startswith("lane: refused a stranger: TLS ")


def test_an_older_tls_is_refused(certified, caplog):
    context = client(certified)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def scenario():
        async with opened(certified) as lane:
            with pytest.raises(ssl.SSLError):
                async with calling(lane, context):
                    pass
            # What the lane has to say about it may come a moment later.
            while not said(caplog):
                await asyncio.sleep(0.01)

    run(scenario())
    assert said(caplog)[0].startswith("lane: refused a stranger: TLS ")


def test_no_connection_is_taken_up_again_without_its_certificate(certified):
    async def scenario():
        context = client(certified)
        async with opened(certified) as lane, calling(lane, context) as caller:
            await use(lane, caller)
            secured = caller.writer.get_extra_info("ssl_object")
            assert secured.version() == "TLSv1.3"
            assert secured.session is None or not secured.session.has_ticket

    run(scenario())


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", bytes(16), b"\x16\x03\x01\xff\xff" + bytes(1 << 17)]
)
def test_what_is_no_tls_ends_the_connection(certified, data):
    async def scenario():
        async with opened(certified) as lane:
            async with calling(lane) as caller:
                caller.say(data)
                await caller.ended()
            async with calling(lane, client(certified)) as caller:
                await use(lane, caller)

    run(scenario())


def test_tls_where_there_is_none_ends_the_connection(certified):
    async def scenario():
        async with opened() as lane:
            with pytest.raises(OSError, match=r".*"):
                async with calling(lane, client(certified)):
                    pass

    run(scenario())


def test_who_says_nothing_is_not_waited_for(folder, caplog):
    async def scenario():
        async with opened(folder, showing=0.01) as lane, calling(lane) as stranger:
            await stranger.ended()

    run(scenario())
    assert said(caplog) == []
    assert said(caplog, logging.DEBUG)[0].startswith("lane: refused a stranger: SILENT ")


def test_strangers_do_not_keep_out_who_shows_its_ticket(folder):
    async def scenario():
        async with opened(folder, showing=1000) as lane, contextlib.AsyncExitStack() as stack:
            strangers = [await stack.enter_async_context(calling(lane)) for _ in range(64)]
            async with calling(lane, client(folder)) as caller:
                await use(lane, caller)
                await strangers[0].ended()
                more = [await stack.enter_async_context(calling(lane)) for _ in range(64)]
                for stranger in strangers[1:]:
                    await stranger.ended()
                assert not any(stranger.reader.at_eof() for stranger in more[1:])
                await use(lane, caller)

    run(scenario())


class Watched:
    """A doorman that says when somebody has come in."""

    def __init__(self, doorman):
        self._doorman = doorman
        self.came = asyncio.Event()

    def named(self, peer):
        return self._doorman.named(peer)

    def worker(self, peer):
        self.came.set()
        return self._doorman.worker(peer)


def test_a_worker_with_a_certificate_is_no_stranger_before_its_first_ticket(certified):
    async def scenario():
        security = Security(certified)
        doorman = Watched(security.doorman)
        lane = Lane(LIMITS, doorman, security.context, Patience(strangers=1, showing=1000))
        async with opened(lane=lane), calling(lane, client(certified)) as worker:
            await doorman.came.wait()
            async with calling(lane) as one, calling(lane):
                await one.ended()
                await use(lane, worker)

    run(scenario())


def test_a_connection_that_is_not_used_is_ended_however_long_its_call_took(caplog):
    async def scenario():
        async with opened(idle=0.02) as lane, calling(lane) as caller:
            with lane.ticket("w00") as ticket:
                caller.show(ticket)
                line = await ticket.line()
                await asyncio.sleep(0.1)
                caller.say(HELLO)
                assert await line.exactly(5) == HELLO
                ticket.complete()
            await caller.ended()

    run(scenario())
    assert said(caplog) == []


def test_a_certificate_alone_keeps_no_connection_for_ever(certified, caplog):
    async def scenario():
        async with opened(certified, idle=0.02) as lane, calling(lane, client(certified)) as caller:
            await caller.ended()

    run(scenario())
    assert said(caplog) == []


def test_the_oldest_of_three_idle_connections_of_a_worker_is_ended(folder):
    async def scenario():
        async with opened(folder) as lane, contextlib.AsyncExitStack() as stack:

            async def used(name):
                caller = await stack.enter_async_context(calling(lane, client(folder, name)))
                await use(lane, caller, name)
                return caller

            oldest, other = await used("w00"), await used("w01")
            rest = [await used("w00") for _ in range(2)]
            await oldest.ended()
            for caller in rest:
                await use(lane, caller)
            await use(lane, other, "w01")

    run(scenario())


def test_closing_ends_what_is_under_way(folder):
    async def scenario():
        async with opened(folder) as lane, contextlib.AsyncExitStack() as stack:
            contexts = [client(folder, name) for name in ("w00", "w00", "w01")]
            callers = [await stack.enter_async_context(calling(lane, context)) for context in contexts]
            shown, waiting = (stack.enter_context(lane.ticket("w00")) for _ in range(2))
            callers[0].show(shown, bytes(1 << 20))
            line = await shown.line()

            async def receive():
                while True:
                    await line.readable()
                    await line.receive(1 << 16, lambda piece: None)

            receiving, expecting = asyncio.create_task(receive()), asyncio.create_task(waiting.line())
            await asyncio.sleep(0.01)
            await lane.close()
            for task in (receiving, expecting):
                with pytest.raises(LineError):
                    await task
            for caller in callers:
                await caller.ended()
            with pytest.raises(ConnectionRefusedError):
                async with calling(lane):
                    pass

    run(scenario())


def test_closing_ends_connections_that_have_just_come(folder):
    async def scenario():
        async with opened(folder) as lane:
            sockets = [socket.create_connection((HOST, lane.port)) for _ in range(20)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for connection in sockets:
            connection.close()

    run(scenario())


def test_a_lane_that_never_listened_can_be_closed():
    async def scenario():
        lane = Lane(LIMITS, None, None)
        assert lane.port == 0
        await lane.close()
        await lane.close()

    run(scenario())


def test_a_renewed_certificate_is_shown_on_new_connections(authority, caplog):
    shown = []

    async def scenario():
        async with opened(authority.path) as lane, contextlib.AsyncExitStack() as stack:

            async def used():
                caller = await stack.enter_async_context(calling(lane, client(authority.path)))
                await use(lane, caller)
                shown.append(fingerprint(ssl.DER_cert_to_PEM_cert(caller.certificate).encode()))
                return caller

            old = await used()
            authority.issue("server", Role.SERVER, days=1, force=True)
            await used()
            await use(lane, old)

    run(scenario())
    assert shown == [one.fingerprint for one in authority.issued() if one.role == "server"]
    assert "the certificate of the server was renewed for payloads" in caplog.text


def test_connections_that_break_at_once_do_no_harm(folder):
    async def scenario():
        async with opened(folder) as lane:
            for _ in range(100):
                with socket.create_connection((HOST, lane.port)) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await asyncio.sleep(0)
            async with calling(lane, client(folder)) as caller:
                await use(lane, caller)

    run(scenario())


def test_connections_wait_while_the_process_may_open_no_more_files(monkeypatch, caplog):
    monkeypatch.setattr(lanes, "PAUSE", 0.01)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario():
        async with opened() as lane:
            reader, writer = socket.socketpair()
            with reader, writer, socket.socket() as connection:
                most = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
                spare = [os.dup(reader.fileno())]
                while spare[-1] < most:
                    spare.append(os.dup(reader.fileno()))
                resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1] + 1, before[1]))
                connection.connect((HOST, lane.port))
                while len(said(caplog, logging.DEBUG)) < 3:
                    await asyncio.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                for number in spare:
                    os.close(number)
                with lane.ticket("w00") as ticket:
                    connection.send(bytes.fromhex(ticket.text))
                    await ticket.line()

    try:
        run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    (line,) = said(caplog)
    assert line.startswith("lane: refused new connections: EMFILE ")


def test_a_port_that_is_taken_is_named_as_in_the_configuration():
    async def scenario():
        async with opened() as lane:
            second = Lane(LIMITS, None, None)
            with pytest.raises(PortInUse, match=r"127\.0\.0\.1:\d+ for itself.*`server\.data_port`"):
                await second.listen(HOST, lane.port)
            with pytest.raises(ListenError, match=r"Set `server\.host` and `server\.data_port`"):
                await second.listen("192.0.2.1", 0)
            await second.close()

    run(scenario())


def test_a_lane_may_have_an_address_of_version_6():
    async def scenario():
        lane = Lane(LIMITS, None, None)
        try:
            port = await lane.listen("::1", 0)
        except ListenError:
            pytest.skip("no IPv6 here")
        reader, writer = await asyncio.open_connection("::1", port)
        await use(lane, Caller(reader, writer))
        await lane.close()
        writer.close()

    run(scenario())
