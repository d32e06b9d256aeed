"""One connection beside gRPC, over real sockets."""

from __future__ import annotations

import asyncio
import inspect
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


def joined(test):
    """Run a coroutine with both ends of a connection, and the parameters of its test."""

    async def both(parameters):
        one, other = pair()
        with ThreadPoolExecutor(2) as threads:
            ends = DataConnection(one, threads), DataConnection(other, threads)
            try:
                async with asyncio.timeout(patience(30)):
                    await test(*ends, **parameters)
            finally:
                for end in ends:
                    end.close()

    def run(**parameters):
        asyncio.run(both(parameters))

    given = inspect.signature(test)
    run.__signature__ = given.replace(parameters=[*given.parameters.values()][2:])
    run.__name__ = test.__name__
    return run


def transfer(size):
    return AssociatedData(3, "push", "run-1", 0, "w00", size)


async def taken(line, size, share=connection.TURN_BYTES):
    found = bytearray()
    while len(found) < size:
        await line.ready()
        await line.receive(min(share, size - len(found)), pass_to(lambda piece: found.extend(piece)))
    return bytes(found)


async def given(line, data, pieces=100_000, share=connection.TURN_BYTES):
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
        *((size, connection.TURN_BYTES) for size in (1, 15, cargo.BLOCK + 1, 5_000_001)),
    ],
)
@joined
async def test_what_goes_in_comes_out(one, other, size, share):
    data = random.Random(size).randbytes(size)
    _, found = await asyncio.gather(given(one, data, share=share), taken(other, size, share))
    assert found == data


@joined
async def test_sent_is_counted_once(one, other):
    sent, _ = await asyncio.gather(given(one, bytes(3_000_001)), taken(other, 3_000_001))
    assert sent == 3_000_001


@joined
async def test_a_turn_ends_when_nothing_comes(one, other):
    await one.write(b"abc")
    found = []
    await other.ready()
    while not found:
        await other.receive(100, pass_to(lambda piece: found.append(bytes(piece))))
    assert (found, await other.receive(100, pass_to(lambda piece: found.append(bytes(piece))))) == (
        [b"abc"],
        0,
    )


@joined
async def test_a_turn_takes_no_more_than_it_may(one, other):
    """What is left belongs to whatever comes next."""
    await one.write(b"0123456789")
    first = await taken(other, 4)
    assert (first, await other.read_exactly(6)) == (b"0123", b"456789")


@joined
async def test_few_bytes_in_many_parts(one, other):
    async def drip():
        for byte in b"0123456789abcdef":
            await one.write(bytes([byte]))
            await asyncio.sleep(0.001)

    _, found = await asyncio.gather(drip(), other.read_exactly(16))
    assert found == b"0123456789abcdef"


@pytest.mark.parametrize("how", ["end", "reset"])
@joined
async def test_the_other_end_hangs_up(one, other, how):
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


@joined
async def test_whoever_waits_is_woken_by_the_end(one, other):
    waiting = [asyncio.create_task(one.read_exactly(1)), asyncio.create_task(taken(other, 1))]
    await asyncio.sleep(0.01)
    one.close(), other.close()
    assert ([type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)]) == [
        DataConnectionError,
        DataConnectionError,
    ]


@joined
async def test_a_turn_in_flight_keeps_its_socket(one, other):
    """The number of the socket is free for others only when no thread uses it any more."""
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
    assert open_yet


@joined
async def test_who_is_cancelled_leaves_no_line(one, other):
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
    assert other.closed


@joined
async def test_what_a_sink_raises_is_raised(one, other):
    await one.write(b"x" * 10)

    def sink(_):
        raise KeyError("this")

    with pytest.raises(KeyError, match="this"):
        await other.receive(10, pass_to(sink))


@joined
async def test_payloads_are_sealed_one_by_one_and_what_is_between_them_is_not(one, other):
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

    assert await sealed(one, other, keys[0]) == await sealed(other, one, keys[1]) == data


@joined
async def test_the_next_payload_may_go_the_other_way(one, other):
    """Nothing that the last one waited for is waited for again."""
    await one.write(b"abc")
    await other.ready()
    while not await other.receive(100, pass_to(bytes)):
        await other.ready()
    assert not await other.receive(100, pass_to(bytes)), "it waits for more"
    other.begin(b"", transfer(5))
    async with asyncio.timeout(patience(20)):
        await given(other, b"there")
        assert (await one.read_exactly(5)) == b"there"


@pytest.mark.parametrize("theirs", [b"", b"y" * 32])
@joined
async def test_a_line_ends_with_what_is_not_sealed(one, other, theirs):
    pytest.importorskip("cryptography")
    one.begin(theirs, transfer(1_000_000))
    other.begin(b"x" * 32, transfer(1_000_000))
    with pytest.raises(DataConnectionError, match="not encrypted"):
        await asyncio.gather(given(one, bytes(1_000_000)), taken(other, 1_000_000))


@joined
async def test_who_waits_for_room_hears_at_once_of_an_end(one, other):
    """Left to the system, that may take a minute: it goes on saying that there is no room."""
    sending = asyncio.create_task(given(one, bytes(50_000_000)))
    await taken(other, 1000)
    await asyncio.sleep(0.05)
    assert not sending.done()
    other.abort()
    with pytest.raises(DataConnectionError, match="reset"):
        async with asyncio.timeout(patience(20)):
            await sending


@joined
async def test_an_abrupt_end_is_none_in_the_eyes_of_the_owner(one, other):
    one.abort()
    one.abort()
    assert one.closed
    with pytest.raises(DataConnectionError, match="closed"):
        await one.receive(10, pass_to(bytes))
    with pytest.raises(DataConnectionError, match="reset"):
        await other.read_exactly(1)
