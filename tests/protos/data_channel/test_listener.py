"""Connections beside gRPC, over real sockets: what comes to a call, and what ends at the door."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import struct
import threading
from dataclasses import replace

import pytest
from tests.chunks import pass_to
from tests.protos.data_channel.book import Book, encrypted_size

from varangian.protos.data_channel import listener as lanes
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import DataConnectionError, Transfer
from varangian.protos.data_channel.listener import BoundedTasks, DataListener, IdleLimits
from varangian.protos.messages import PROTOCOL
from varangian.protos.network.listen import ListenError, bind_sockets
from varangian.server.transport.refusals import Refusals

HOST = "127.0.0.1"
HELLO = b"hello"


@pytest.fixture(autouse=True)
def _nothing_is_left(caplog):
    """No task, thread or file of a lane outlives it."""
    caplog.set_level(logging.DEBUG)
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect(1)
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
    assert [one.name for one in threading.enumerate() if one.name.startswith("varangian-data")] == []
    assert len(os.listdir("/proc/self/fd")) <= before  # what other tests have left may go meanwhile


def listener(sealed=False, refusals=None, **limits):
    return DataListener(2, sealed, (refusals or Refusals()).connection, IdleLimits(**limits))


@contextlib.asynccontextmanager
async def opened(sealed=False, refusals=None, **limits):
    """A lane that listens."""
    lane = listener(sealed, refusals, **limits)
    try:
        lane.listen(bind_sockets(HOST, 0))
        yield lane
    finally:
        await lane.close()


def transfer(worker, direction="push"):
    return AssociatedData(PROTOCOL, direction, "run-1", 0, worker, len(HELLO))


class Caller:
    """The other end."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def say(self, data):
        self.writer.write(data)

    def show(self, ticket, payload=b""):
        self.say(bytes.fromhex(ticket.text)[:16] + payload)

    async def ended(self):
        """Wait for the end of the connection; what came before it."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


@contextlib.asynccontextmanager
async def calling(lane):
    reader, writer = await asyncio.open_connection(HOST, lane.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
        # Whoever was told that the connection broke hears it here once more.
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def use(lane, caller, worker="w00", payload=HELLO):
    """One call from its ticket to its end."""
    with lane.ticket(transfer(worker)) as ticket:
        caller.show(ticket, payload)
        line = await ticket.connection()
        assert await line.read_exactly(len(payload)) == payload
        ticket.complete()


def said(caplog, level=logging.WARNING):
    ours = [one for one in caplog.records if one.getMessage().startswith("data port: ")]
    return [one.getMessage() for one in ours if one.levelno == level]


async def test_a_connection_serves_one_call_after_the_other_both_ways(caplog):
    async with opened() as lane, calling(lane) as caller:
        await use(lane, caller)
        with lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket)
            line, cargo = await ticket.connection(), Transfer([memoryview(bytes(100_000))])
            while not cargo.done:
                await line.ready()
                await line.send(cargo)
            assert await caller.reader.readexactly(100_000) == bytes(100_000)
            ticket.complete()
        await use(lane, caller)
    assert said(caplog) == []


async def test_two_workers_find_their_own_calls():
    async with opened() as lane, calling(lane) as one, calling(lane) as other:
        with lane.ticket(transfer("w00")) as first, lane.ticket(transfer("w01")) as second:
            other.show(second, b"w01")
            one.show(first, b"w00")
            assert await (await first.connection()).read_exactly(3) == b"w00"
            assert await (await second.connection()).read_exactly(3) == b"w01"


async def test_a_ticket_may_come_in_pieces():
    async with opened() as lane, calling(lane) as caller:
        with lane.ticket(transfer("w00")) as ticket:
            for byte in bytes.fromhex(ticket.text):
                caller.say(bytes([byte]))
                await asyncio.sleep(0)
            await ticket.connection()


async def test_an_unknown_ticket_ends_the_connection_and_is_logged_once(caplog):
    refusals = Refusals()
    async with opened(refusals=refusals) as lane:
        for _ in range(3):
            async with calling(lane) as caller:
                caller.say(bytes(16) + HELLO)
                assert await caller.ended() == b""
        assert refusals.counts == {"TICKET": 3}
    (line,) = said(caplog)
    assert line.startswith("data port: refused a stranger: TICKET ")
    assert len(said(caplog, logging.DEBUG)) == 2


async def test_a_ticket_counts_once():
    async with opened() as lane, calling(lane) as caller, calling(lane) as copy:
        with lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket)
            line = await ticket.connection()
            copy.show(ticket)
            await copy.ended()
            caller.say(HELLO)
            assert await line.read_exactly(5) == HELLO


async def test_a_ticket_counts_until_its_call_has_ended():
    async with opened() as lane, calling(lane) as caller:
        with lane.ticket(transfer("w00")) as ticket:
            pass
        caller.show(ticket)
        await caller.ended()
        with pytest.raises(DataConnectionError):
            await ticket.connection()
        with pytest.raises(RuntimeError), ticket:
            pass


async def test_a_call_that_ends_halfway_ends_its_connection():
    async with opened() as lane, calling(lane) as caller:
        with contextlib.suppress(ZeroDivisionError), lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket, HELLO)
            await ticket.connection()
            raise ZeroDivisionError
        await caller.ended()


async def test_whoever_hangs_up_ends_only_its_own_call():
    async with opened() as lane:
        with lane.ticket(transfer("w00")) as ticket:
            async with calling(lane) as caller:
                caller.show(ticket)
                line = await ticket.connection()
            with pytest.raises(DataConnectionError):
                await line.read_exactly(1)
        async with calling(lane) as caller:
            caller.say(b"half")
        async with calling(lane) as caller:
            await use(lane, caller)


async def test_more_than_the_payload_ends_the_connection_after_it():
    async with opened() as lane, calling(lane) as caller:
        with lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket, HELLO + bytes(1000))
            assert await (await ticket.connection()).read_exactly(5) == HELLO
            ticket.complete()
        await caller.ended()


async def test_who_says_nothing_is_not_waited_for(caplog):
    refusals = Refusals()
    async with opened(refusals=refusals, first_ticket=0.01) as lane, calling(lane) as stranger:
        await stranger.ended()
        assert refusals.counts == {"SILENT": 1}
    assert said(caplog) == []
    assert said(caplog, logging.DEBUG)[0].startswith("data port: refused a stranger: SILENT ")


async def test_strangers_do_not_keep_out_who_shows_its_ticket():
    refusals = Refusals()
    async with opened(refusals=refusals, first_ticket=1000) as lane, contextlib.AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(calling(lane)) for _ in range(64)]
        async with calling(lane) as caller:
            await use(lane, caller)
            await strangers[0].ended()
            more = [await stack.enter_async_context(calling(lane)) for _ in range(64)]
            for stranger in strangers[1:]:
                await stranger.ended()
            assert not any(stranger.reader.at_eof() for stranger in more[1:])
            await use(lane, caller)
            assert refusals.counts == {"CROWD": 64}


async def test_a_connection_takes_no_ticket_once_it_is_old(caplog):
    async with opened(age=0.0) as lane, calling(lane) as caller:
        await use(lane, caller)
        await caller.ended()
    assert said(caplog) == []


async def test_a_connection_that_is_not_used_is_ended_however_long_its_call_took(caplog):
    async with opened(next_ticket=0.02) as lane, calling(lane) as caller:
        with lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket)
            line = await ticket.connection()
            await asyncio.sleep(0.1)
            caller.say(HELLO)
            assert await line.read_exactly(5) == HELLO
            ticket.complete()
        await caller.ended()
    assert said(caplog) == []


async def test_the_oldest_of_three_idle_connections_of_a_worker_is_ended():
    refusals = Refusals()
    async with opened(refusals=refusals) as lane, contextlib.AsyncExitStack() as stack:

        async def used(name):
            caller = await stack.enter_async_context(calling(lane))
            await use(lane, caller, name)
            return caller

        oldest, other = await used("w00"), await used("w01")
        rest = [await used("w00") for _ in range(2)]
        await oldest.ended()
        assert refusals.counts == {"CROWD": 1}
        for caller in rest:
            await use(lane, caller)
        await use(lane, other, "w01")


def book(ticket, **changes):
    """As the caller of a ticket encrypts a payload, and how it reads one."""
    pytest.importorskip("cryptography")
    named = replace(ticket._transfer, **changes)
    return Book(bytes.fromhex(ticket.text)[16:], named.associated())


async def taken(line, size):
    found = bytearray()
    while len(found) < size:
        await line.ready()
        await line.receive(size - len(found), pass_to(found.extend))
    return bytes(found)


async def test_payloads_are_sealed_with_the_key_of_their_ticket():
    async with opened(sealed=True) as lane, calling(lane) as caller:
        for _ in range(2):
            with lane.ticket(transfer("w00")) as ticket:
                caller.show(ticket, book(ticket).encrypted(HELLO))
                assert await taken(await ticket.connection(), 5) == HELLO
                ticket.complete()
            with lane.ticket(transfer("w00")) as ticket:
                caller.show(ticket)
                await (await ticket.connection()).send(Transfer([memoryview(HELLO)]))
                found = await caller.reader.readexactly(encrypted_size(len(HELLO)))
                assert book(ticket).decrypted(found) == HELLO
                ticket.complete()


async def test_each_ticket_has_a_key_of_its_own_and_only_where_payloads_are_sealed():
    async with opened(sealed=True) as lane:
        keys = {bytes.fromhex(lane.ticket(transfer("w00")).text)[16:] for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {32}
    async with opened() as lane:
        assert len(bytes.fromhex(lane.ticket(transfer("w00")).text)) == 16


@pytest.mark.parametrize("payload", [HELLO + bytes(56), b"\x28" + bytes(1000)])
async def test_who_has_a_ticket_without_its_key_ends_that_call_and_no_other(payload):
    pytest.importorskip("cryptography")
    async with opened(sealed=True) as lane, calling(lane) as thief, calling(lane) as owner:
        with lane.ticket(transfer("w00")) as stolen:
            thief.show(stolen, payload)
            line = await stolen.connection()
            with pytest.raises(DataConnectionError, match="not encrypted"):
                await taken(line, 5)
        await thief.ended()
        with lane.ticket(transfer("w00")) as ticket:
            owner.show(ticket, book(ticket).encrypted(HELLO))
            assert await taken(await ticket.connection(), 5) == HELLO


# Every field of the associated data counts: test_streaming_aead.py.
@pytest.mark.parametrize("changes", [{"direction": "pull"}, {"worker": "w01"}])
async def test_the_right_key_does_not_open_a_payload_of_another_transfer(changes):
    """Whoever mixes up two payloads, whatever the reason, ends with nothing."""
    async with opened(sealed=True) as lane, calling(lane) as caller:
        with lane.ticket(transfer("w00")) as ticket:
            caller.show(ticket, book(ticket, **changes).encrypted(HELLO))
            line = await ticket.connection()
            with pytest.raises(DataConnectionError, match="not encrypted"):
                await taken(line, 5)


async def test_closing_ends_what_is_under_way():
    async with opened() as lane, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(lane)) for _ in range(3)]
        shown, waiting = (stack.enter_context(lane.ticket(transfer("w00"))) for _ in range(2))
        callers[0].show(shown, bytes(1 << 20))
        line = await shown.connection()

        async def receive():
            while True:
                await line.ready()
                await line.receive(1 << 16, pass_to(lambda piece: None))

        receiving, expecting = asyncio.create_task(receive()), asyncio.create_task(waiting.connection())
        await asyncio.sleep(0.01)
        await lane.close()
        for task in (receiving, expecting):
            with pytest.raises(DataConnectionError):
                await task
        for caller in callers:
            await caller.ended()
        with pytest.raises(ConnectionRefusedError):
            async with calling(lane):
                pass


async def test_closing_ends_connections_that_have_just_come():
    async with opened() as lane:
        sockets = [socket.create_connection((HOST, lane.port)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for connection in sockets:
        connection.close()


async def test_a_lane_that_never_listened_can_be_closed():
    lane = listener()
    assert lane.port == 0
    await lane.close()
    await lane.close()


async def test_connections_that_break_at_once_do_no_harm():
    async with opened() as lane:
        for _ in range(100):
            with socket.create_connection((HOST, lane.port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0)
        async with calling(lane) as caller:
            await use(lane, caller)


async def test_connections_wait_while_the_process_may_open_no_more_files(monkeypatch, caplog):
    monkeypatch.setattr(lanes, "ACCEPT_PAUSE", 0.01)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        async with opened() as lane:
            reader, writer = socket.socketpair()
            with reader, writer, socket.socket() as connection:
                gc.collect()  # what ends later would leave numbers free
                most = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
                spare = [os.dup(reader.fileno())]
                while spare[-1] < most:
                    spare.append(os.dup(reader.fileno()))
                resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1] + 1, before[1]))
                connection.connect((HOST, lane.port))
                while len(said(caplog, logging.DEBUG)) < 3:
                    with contextlib.suppress(OSError):  # where another thread has closed something
                        spare.append(os.dup(reader.fileno()))
                    await asyncio.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                for number in spare:
                    os.close(number)
                with lane.ticket(transfer("w00")) as ticket:
                    connection.send(bytes.fromhex(ticket.text)[:16])
                    await ticket.connection()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    (line,) = said(caplog)
    assert line.startswith("data port: refused new connections: EMFILE ")


async def test_a_lane_may_have_an_address_of_version_6():
    lane = listener()
    try:
        port = lane.listen(bind_sockets("::1", 0))
    except ListenError:
        pytest.skip("no IPv6 here")
    reader, writer = await asyncio.open_connection("::1", port)
    await use(lane, Caller(reader, writer))
    await lane.close()
    writer.close()


async def test_of_a_crowd_the_largest_group_pays_and_its_oldest_first():
    ended, few = [], BoundedTasks(3, lambda: ended.append(1))

    async def member(group):
        with few.one_more(group):
            await asyncio.Event().wait()

    tasks = {}
    for name in ("few 1", "many 1", "many 2", "few 2", "many 3"):
        tasks[name] = asyncio.create_task(member(name.partition(" ")[0]))
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    # By the time that the last one comes, there are two of the few.
    assert [name for name, task in tasks.items() if task.cancelled()] == ["few 1", "many 1"]
    assert len(ended) == 2
    for task in tasks.values():
        task.cancel()
