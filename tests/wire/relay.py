"""A line as slow as one likes: a TCP relay with real sockets, paced in each direction."""

import asyncio
import contextlib
import socket

BUFFER = 4 << 10
"""Bytes that the relay's sockets hold: what is on the line is slow, not stored on the way."""
SEGMENT = 1 << 10
"""Bytes in a packet. On loopback it is 64 KB by itself, and would wait for room that there never is."""
TICK = 0.05
"""Seconds between two moves. A modem is smoother, a mobile network is not."""


class Way:
    """One direction, shared by all connections."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.moved = 0
        self.longest = 0.0
        """Seconds without a byte between two."""
        self._lock = asyncio.Lock()
        self._free = 0.0

    async def move(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        while data := await reader.read(max(1, int(self.rate * TICK))):
            async with self._lock:
                if self.moved:
                    self.longest = max(self.longest, now() - self._free)
                self._free = max(self._free, now()) + len(data) / self.rate
                await asyncio.sleep(self._free - now())
            self.moved += len(data)
            writer.write(data)
            await writer.drain()


class Relay:
    """Passes everything on to `target`, at most `rate` bytes a second in each direction."""

    def __init__(self, target: str, rate: float) -> None:
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.up, self.down = Way(rate), Way(rate)
        self.connections = 0
        self._relays = set[asyncio.Task[None]]()

    @contextlib.asynccontextmanager
    async def laid(self):
        """Where to connect, as `host:port`."""
        server = await asyncio.start_server(self._relay, sock=_listener(), limit=BUFFER)
        try:
            yield "{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()
            for relay in self._relays:
                relay.cancel()
            await asyncio.gather(*self._relays, return_exceptions=True)
            # A transport that was aborted closes its socket in the next turns of the loop.
            await asyncio.sleep(0.01)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._relays.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(
            sock=await _dialled(self.target), limit=BUFFER
        )
        ways = [
            asyncio.create_task(self.up.move(reader, far_writer)),
            asyncio.create_task(self.down.move(far_reader, writer)),
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, far_writer):
                end.transport.abort()


def _listener() -> socket.socket:
    listener = socket.socket()
    _small(listener)  # before it listens: connections inherit the size
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def _dialled(target: tuple[str, int]) -> socket.socket:
    line = socket.socket()
    _small(line)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, target)
    return line


def _small(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
