"""One connection beside gRPC, over real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.chunks import pass_to
from tests.extent import patience

from varangian.protos.data_channel import connection
from varangian.protos.data_channel import transfer as cargo
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import DataConnection, DataConnectionError, Transfer


def pair():
    """Over TCP: its buffers are those of the real thing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def joined(threads):
    """Runs a coroutine function with both ends of a connection."""

    def run(work):
        async def both():
            one, other = pair()
            ends = DataConnection(one, threads), DataConnection(other, threads)
            try:
                async with asyncio.timeout(patience(30)):
                    return await work(*ends)
            finally:
                for end in ends:
                    end.close()

        return asyncio.run(both())

    return run


def transfer(size):
    return AssociatedData(3, "push", "run-1", 0, "w00", size)


async def taken(line, size, share=connection.SHARE):
    found = bytearray()
    while len(found) < size:
        await line.ready()
        await line.receive(min(share, size - len(found)), pass_to(lambda piece: found.extend(piece)))
    return bytes(found)


async def given(line, data, pieces=100_000, share=connection.SHARE):
    view = memoryview(data)
    cargo, sent = Transfer(view[at : at + pieces] for at in range(0, len(view), pieces)), 0
    while not cargo.done:
        await line.ready()
        sent += await line.send(cargo, share)
    return sent


@pytest.mark.parametrize(
    ("size", "share"),
    [
        (1, 1 << 10),
        (400_001, 1 << 10),
        *((size, connection.SHARE) for size in (1, 15, cargo.BLOCK + 1, 5_000_001)),
    ],
)
def test_what_goes_in_comes_out(joined, size, share):
    data = random.Random(size).randbytes(size)

    async def work(one, other):
        _, found = await asyncio.gather(given(one, data, share=share), taken(other, size, share))
        return found

    assert joined(work) == data


def test_sent_is_counted_once(joined):
    async def work(one, other):
        sent, _ = await asyncio.gather(given(one, bytes(3_000_001)), taken(other, 3_000_001))
        return sent

    assert joined(work) == 3_000_001


def test_a_turn_ends_when_nothing_comes(joined):
    async def work(one, other):
        await one.write(b"abc")
        found = []
        await other.ready()
        while not found:
            await other.receive(100, pass_to(lambda piece: found.append(bytes(piece))))
        return found, await other.receive(100, pass_to(lambda piece: found.append(bytes(piece))))

    assert joined(work) == ([b"abc"], 0)


def test_a_turn_takes_no_more_than_it_may(joined):
    """What is left belongs to whatever comes next."""

    async def work(one, other):
        await one.write(b"0123456789")
        first = await taken(other, 4)
        return first, await other.read_exactly(6)

    assert joined(work) == (b"0123", b"456789")


def test_few_bytes_in_many_parts(joined):
    async def work(one, other):
        async def drip():
            for byte in b"0123456789abcdef":
                await one.write(bytes([byte]))
                await asyncio.sleep(0.001)

        _, found = await asyncio.gather(drip(), other.read_exactly(16))
        return found

    assert joined(work) == b"0123456789abcdef"


@pytest.mark.parametrize("how", ["end", "reset"])
def test_the_other_end_hangs_up(joined, how):
    async def work(one, other):
        await one.write(b"abc")
        if how == "reset":
            one._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
        with pytest.raises(DataConnectionError):
            await taken(other, 100)
        with pytest.raises(DataConnectionError):
            await other.read_exactly(1)
        with pytest.raises(DataConnectionError):
            await given(other, bytes(50_000_000))

    joined(work)


def test_whoever_waits_is_woken_by_the_end(joined):
    async def work(one, other):
        waiting = [asyncio.create_task(one.read_exactly(1)), asyncio.create_task(taken(other, 1))]
        await asyncio.sleep(0.01)
        one.close(), other.close()
        return [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)]

    assert joined(work) == [DataConnectionError, DataConnectionError]


def test_a_turn_in_flight_keeps_its_socket(joined):
    """The number of the socket is free for others only when no thread uses it any more."""

    async def work(one, other):
        hold, inside = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def sink(_):
            loop.call_soon_threadsafe(inside.set)
            hold.wait(patience(10))

        await one.write(b"x" * 10)
        turn = asyncio.create_task(other.receive(10, pass_to(sink)))
        await inside.wait()
        other.close()
        open_yet = other._connection.fileno() >= 0
        hold.set()
        with pytest.raises(DataConnectionError):
            await turn
        while other._connection.fileno() >= 0:  # the thread closes it when it is through
            await asyncio.sleep(0.001)
        return open_yet

    assert joined(work)


def test_who_is_cancelled_leaves_no_line(joined):
    async def work(one, other):
        hold, inside = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def sink(_):
            loop.call_soon_threadsafe(inside.set)
            hold.wait(patience(10))

        await one.write(b"x" * 10)
        turn = asyncio.create_task(other.receive(10, pass_to(sink)))
        await inside.wait()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        hold.set()
        return other.closed

    assert joined(work)


def test_what_a_sink_raises_is_raised(joined):
    async def work(one, other):
        await one.write(b"x" * 10)

        def sink(_):
            raise KeyError("this")

        with pytest.raises(KeyError, match="this"):
            await other.receive(10, pass_to(sink))

    joined(work)


def test_payloads_are_sealed_one_by_one_and_what_is_between_them_is_not(joined):
    pytest.importorskip("cryptography")
    data, keys = random.Random(2).randbytes(3_000_001), [bytes([number]) * 32 for number in range(2)]

    async def sealed(one, other, key):
        await one.write(b"ticket")
        assert await other.read_exactly(6) == b"ticket"
        one.begin(key, transfer(len(data)))
        other.begin(key, transfer(len(data)))
        _, found = await asyncio.gather(given(one, data), taken(other, len(data)))
        one.end()
        other.end()
        return found

    async def work(one, other):
        return [await sealed(one, other, keys[0]), await sealed(other, one, keys[1])]

    assert joined(work) == [data, data]


def test_the_next_payload_may_go_the_other_way(joined):
    """Nothing that the last one waited for is waited for again."""

    async def work(one, other):
        await one.write(b"abc")
        await other.ready()
        while not await other.receive(100, pass_to(bytes)):
            await other.ready()
        assert not await other.receive(100, pass_to(bytes)), "it waits for more"
        other.begin(b"", transfer(5))
        async with asyncio.timeout(patience(20)):
            await given(other, b"there")
            return await one.read_exactly(5)

    assert joined(work) == b"there"


@pytest.mark.parametrize("theirs", [b"", b"y" * 32])
def test_a_line_ends_with_what_is_not_sealed(joined, theirs):
    pytest.importorskip("cryptography")

    async def work(one, other):
        one.begin(theirs, transfer(1_000_000))
        other.begin(b"x" * 32, transfer(1_000_000))
        with pytest.raises(DataConnectionError, match="not encrypted"):
            await asyncio.gather(given(one, bytes(1_000_000)), taken(other, 1_000_000))

    joined(work)


def test_who_waits_for_room_hears_at_once_of_an_end(joined):
    """Left to the system, that may take a minute: it goes on saying that there is no room."""

    async def work(one, other):
        sending = asyncio.create_task(given(one, bytes(50_000_000)))
        await taken(other, 1000)
        await asyncio.sleep(0.05)
        assert not sending.done()
        other.abort()
        with pytest.raises(DataConnectionError, match="reset"):
            async with asyncio.timeout(patience(20)):
                await sending

    joined(work)


def test_an_abrupt_end_is_none_in_the_eyes_of_the_owner(joined):
    async def work(one, other):
        one.abort()
        one.abort()
        assert one.closed
        with pytest.raises(DataConnectionError, match="closed"):
            await one.receive(10, pass_to(bytes))
        with pytest.raises(DataConnectionError, match="reset"):
            await other.read_exactly(1)

    joined(work)
