"""HTTP/2 connections for floods: frames written by hand, thousands of streams in one event loop.

Nothing is compressed and no rule but flow control is kept, so that an attacker spends little on what costs
the server much. `http2.Line` is the connection for attacks that go step by step.
"""

import asyncio
import contextlib
import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

import hpack
from tests.hostile.http2 import (
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PATH,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

from varangian.protos.identity.bundle import ssl_contexts
from varangian.protos.metadata_keys import SESSION, TOKEN, WORKER

END_STREAM = ACK = 1
INITIAL_WINDOW, MAX_FRAME = 4, 5
"""Settings of the other end that decide how much may be sent."""
DEFAULT_WINDOW, LARGEST_WINDOW = 65_535, (1 << 31) - 1
PIECE = 16_384
"""Bytes of a DATA frame."""


class Closed(ConnectionError):
    """The connection has ended, or the server wants it to."""


@dataclass(frozen=True)
class Mark:
    """A server, and what an attacker knows of it and of its run."""

    host: str
    port: int
    data_port: int = 0
    certs: Path | None = None
    """A directory of bundles, where calls go over TLS."""
    name: str | None = None
    """The worker whose certificate or token the attacker has; None for a stranger."""
    token: str = ""
    others: tuple[str, ...] = ()
    """Workers of the run whose tokens the attacker does not have."""
    session: str = "5a" * 16
    run: str = ""
    layout: str = ""
    common: str = ""
    size: int = 0
    """Bytes of a payload."""

    def identity(self, session: str = "") -> tuple[tuple[str, str], ...]:
        """The metadata of a call; a stranger has none."""
        if self.name is None:
            return ()
        token = () if self.certs else ((TOKEN, self.token),)
        return ((WORKER, self.name), *token, (SESSION, session or self.session))

    @functools.cached_property
    def tls(self):
        """A context with the certificate of this attacker, or without any; None in clear text."""
        if self.certs is None:
            return None
        context = ssl_contexts(self.certs / self.name if self.name else None)[1]
        context.set_alpn_protocols(["h2"])
        return context


@dataclass
class Wire(asyncio.Protocol):
    """One connection to a server."""

    mark: Mark
    reads: bool = True
    """Whether the server may send anything on a stream."""
    heads: bool = False
    """Whether headers are decoded and messages kept: needed by attackers who listen, and slow."""
    _streams: dict[int, "Stream"] = field(default_factory=dict)
    _next: int = 1
    _window: int = DEFAULT_WINDOW
    _initial: int = DEFAULT_WINDOW
    _piece: int = PIECE
    _buffer: bytes = b""
    _received: int = 0
    goaway: bool = False
    settled: bool = False
    """Whether the settings of the server have come."""

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, mark, **options):
        """A connection for as long as the context lasts.

        Raises:
            OSError: there is none.
        """
        loop = asyncio.get_running_loop()
        made = loop.create_connection(lambda: cls(mark, **options), mark.host, mark.port, ssl=mark.tls)
        async with asyncio.timeout(30):
            transport, wire = await made
        try:
            yield wire
        finally:
            transport.abort()

    def connection_made(self, transport):
        self._transport = transport
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._decoder = hpack.Decoder() if self.heads else None
        self.closed = asyncio.get_running_loop().create_future()
        window = LARGEST_WINDOW if self.reads else 0
        own = struct.pack(">HI", INITIAL_WINDOW, window)
        more = frame(WINDOW_UPDATE, 0, 0, (LARGEST_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big"))
        transport.write(PREFACE + frame(SETTINGS, 0, 0, own) + (more if self.reads else b""))

    def connection_lost(self, error):
        if not self.closed.done():
            self.closed.set_result(None)
        for stream in self._streams.values():
            stream.end()
        self._room.set()
        self._changed.set()

    def pause_writing(self):
        self._room.clear()

    def resume_writing(self):
        self._room.set()

    # what comes

    def data_received(self, data):
        buffer = self._buffer + data
        at = 0
        while len(buffer) >= at + 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            end = at + 9 + length
            if len(buffer) < end:
                break
            kind, flags, stream = struct.unpack_from(">BBI", buffer, at + 3)
            self._frame(kind, flags, stream, buffer[at + 9 : end])
            at = end
        self._buffer = buffer[at:]

    def _frame(self, kind, flags, number, body):
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(body), 6):
                self._set(*struct.unpack_from(">HI", body, at))
            self.settled = True
            self._transport.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, body))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(body, "big")
            if number == 0:
                self._window += more
            elif number in self._streams:
                self._streams[number].window += more
            self._wake()
        elif kind == GOAWAY:
            self.goaway = True
        stream = self._streams.get(number)
        if kind in (DATA, HEADERS, RST_STREAM) and number:
            self._stream_frame(stream, kind, flags, body)

    def _stream_frame(self, stream, kind, flags, body):
        if kind == DATA:
            self._received += len(body)
            if self._received > LARGEST_WINDOW // 2:
                more = self._received.to_bytes(4, "big")
                self._transport.write(frame(WINDOW_UPDATE, 0, 0, more))
                self._received = 0
        if self.heads and kind == HEADERS:
            found = self._decoder.decode(body)
            if stream is not None:
                stream.headers.update(found)
                stream.answered.set()
        if stream is None:
            return
        if self.heads and kind == DATA:
            stream.data += body
        if kind == RST_STREAM or flags & END_STREAM:
            stream.end()
            self._streams.pop(stream.number, None)

    def _set(self, name, value):
        if name == INITIAL_WINDOW:
            for stream in self._streams.values():
                stream.window += value - self._initial
            self._initial = value
        elif name == MAX_FRAME:
            self._piece = min(PIECE, value)
        self._wake()

    def _wake(self):
        self._changed.set()
        self._changed = asyncio.Event()

    # what goes

    async def raw(self, data):
        """Any bytes, as fast as they are taken.

        Raises:
            Closed: the connection has ended.
        """
        self._check()
        self._transport.write(data)
        await self._room.wait()
        self._check()

    def open(self, method, metadata=(), end=False):
        """Begin a call.

        Raises:
            Closed: the connection has ended.
        """
        self._check()
        stream = Stream(self._next, self._initial)
        self._streams[stream.number] = stream
        self._next += 2
        flags = END_HEADERS | (END_STREAM if end else 0)
        self._transport.write(frame(HEADERS, flags, stream.number, block(method, tuple(metadata))))
        return stream

    async def message(self, stream, data, end=False, length=None):
        """A gRPC message, which may lie about its length; whether all of it could be sent."""
        head = struct.pack(">BI", 0, len(data) if length is None else length)
        return await self.send(stream, head + data, end)

    async def send(self, stream, data, end=False):
        """Bytes of a stream, as fast as the server lets them in; whether all of them could be sent."""
        view = memoryview(data)
        while True:
            room = min(stream.window, self._window, self._piece)
            if stream.over or self.closed.done():
                return False
            if room <= 0 and len(view):
                await self._change(stream)
                continue
            piece, view = view[:room], view[room:]
            stream.window -= len(piece)
            self._window -= len(piece)
            last = end and not view
            await self.raw(frame(DATA, END_STREAM if last else 0, stream.number, bytes(piece)))
            if not view:
                return True

    async def _change(self, stream):
        """Wait for more room, or for the end of the stream."""
        room, over = (
            asyncio.ensure_future(self._changed.wait()),
            asyncio.ensure_future(stream.ended.wait()),
        )
        try:
            await asyncio.wait((room, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
            over.cancel()

    def reset(self, stream, code=8):
        self._check()
        self._transport.write(frame(RST_STREAM, 0, stream.number, code.to_bytes(4, "big")))
        self._streams.pop(stream.number, None)
        stream.end()

    def pause_reading(self):
        """Take no more bytes from the system."""
        self._transport.pause_reading()

    async def unary(self, method, message, metadata=()):
        """One call with one message, and what became of it.

        Raises:
            Closed: the connection ended before.
        """
        stream = self.open(method, metadata)
        await self.message(stream, message, end=True)
        await stream.ended.wait()
        self._check()
        return stream

    def _check(self):
        if self.closed.done() or self.goaway:
            raise Closed


class Stream:
    """One call on a connection."""

    def __init__(self, number, window):
        self.number = number
        self.window = window
        self.ended = asyncio.Event()
        self.answered = asyncio.Event()
        """Headers have come, or the end."""
        self.headers = {}
        self.data = b""

    @property
    def over(self):
        return self.ended.is_set()

    def end(self):
        self.ended.set()
        self.answered.set()

    @property
    def body(self):
        """The first message."""
        return self.data[5 : 5 + int.from_bytes(self.data[1:5], "big")]


@functools.lru_cache(maxsize=4096)
def block(method, metadata=()):
    """The headers of a call in HPACK, nothing of it compressed or remembered."""
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PATH + method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    )
    return b"".join(literal(key, value) for key, value in headers)


def literal(key, value):
    """A header that is written out, and not kept in the table."""
    key, value = key.encode(), value.encode()
    return b"\0" + _length(len(key)) + key + _length(len(value)) + value


def _length(length):
    """An integer with a prefix of seven bits."""
    if length < 127:
        return bytes((length,))
    found, rest = b"\x7f", length - 127
    while rest >= 128:
        found += bytes((rest & 127 | 128,))
        rest >>= 7
    return found + bytes((rest,))
