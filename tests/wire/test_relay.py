"""The relays of the tests do what they are asked to."""

import asyncio
import contextlib
import random

import pytest
from tests.extent import patience
from tests.wire.relay import NEAR, Relay


@contextlib.asynccontextmanager
async def echoed(**line):
    """A relay to a server that sends everything back, and a connection through it."""

    async def echo(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, NEAR)
    relay = Relay("{}:{}".format(*server.sockets[0].getsockname()), **line)
    async with relay.laid() as address:
        reader, writer = await asyncio.open_connection(*address.rpartition(":")[::2])
        try:
            yield relay, reader, writer
        finally:
            writer.transport.abort()
            server.close()


@pytest.mark.parametrize("line", [{}, {"latency": 0.01, "jitter": 0.02}, {"rate": 4e6}])
async def test_bytes_arrive_in_their_order(line):
    sent = random.Random(1).randbytes(200_000)
    async with echoed(**line) as (relay, reader, writer):
        for start in range(0, len(sent), 10_000):
            writer.write(sent[start : start + 10_000])
        assert await reader.readexactly(len(sent)) == sent
    assert (relay.up.moved, relay.down.moved) == (len(sent), len(sent))


async def test_nothing_arrives_before_its_time():
    now = asyncio.get_running_loop().time
    async with echoed(latency=0.05) as (_, reader, writer):
        began = now()
        writer.write(b"x")
        await reader.readexactly(1)
        assert now() - began >= 0.1


async def test_through_a_hole_comes_nothing_until_it_heals():
    async with echoed() as (relay, reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        relay.hole()
        writer.write(b"within")
        reading = asyncio.create_task(reader.readexactly(6))
        assert not (await asyncio.wait({reading}, timeout=0.05))[0]
        assert relay.up.moved == 6
        relay.heal()
        assert await asyncio.wait_for(reading, patience(5)) == b"within"


async def test_the_end_of_a_connection_is_not_heard_through_a_hole():
    async with echoed() as (relay, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        relay.hole()
        writer.write_eof()
        reading = asyncio.create_task(reader.read())
        assert not (await asyncio.wait({reading}, timeout=0.05))[0]
        relay.heal()
        with contextlib.suppress(OSError):
            await asyncio.wait_for(reading, patience(5))


async def test_a_reset_is_one():
    async with echoed() as (relay, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        await relay.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), patience(5))


async def test_a_silent_connection_breaks():
    async with echoed(idle=0.05) as (_, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        with contextlib.suppress(OSError):
            assert await asyncio.wait_for(reader.read(), patience(5)) == b""
