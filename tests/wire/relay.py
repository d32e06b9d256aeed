"""Lines as bad as one likes: TCP relays with real sockets, slow, cut in the middle, or fallen silent."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from math import inf, isfinite

NEAR, FAR = "127.0.0.1", "127.0.0.2"
"""Where servers listen, and where relays do, with the same numbers of ports: a worker that is sent to FAR
looks there for the port of payloads, too, and finds a relay or nobody."""
BUFFER = 4 << 10
"""Bytes that the sockets of a slow relay hold: what is on the line is slow, not stored on the way."""
SEGMENT = 1 << 10
"""Bytes in a packet. On loopback it is 64 KB by itself, and would wait for room that there never is."""
TICK = 0.05
"""Seconds between two moves. A modem is smoother, a mobile network is not."""
AT_ONCE = 1 << 16
"""Bytes of a move on a line that is not slow."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a connection once so many bytes have gone through it."""

    up: float = inf
    """Towards the server."""
    down: float = inf
    silent: bool = False
    """Nothing moves any more, and neither end is told; otherwise the connection breaks for both."""
    changed: bool = False
    """Or else it goes on, with another bit in its last byte."""


WHOLE = Fate()


class Way:
    """One direction, shared by all connections."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.moved = 0
        self.longest = 0.0
        """Seconds without a byte between two."""
        self._at_once = max(1, int(rate * TICK)) if isfinite(rate) else AT_ONCE
        self._lock = asyncio.Lock()
        self._free = 0.0

    async def move(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: float, changed: bool = False
    ) -> None:
        """Until one end hangs up, or so many bytes have gone through."""
        while left > 0 and (data := await reader.read(int(min(self._at_once, left)))):
            left -= len(data)
            if changed and not left:
                data, left = data[:-1] + bytes([data[-1] ^ 1]), inf
            if isfinite(self.rate):
                await self._paced(len(data))
            self.moved += len(data)
            writer.write(data)
            await writer.drain()

    async def _paced(self, size: int) -> None:
        now = asyncio.get_running_loop().time
        async with self._lock:
            if self.moved:
                self.longest = max(self.longest, now() - self._free)
            self._free = max(self._free, now()) + size / self.rate
            await asyncio.sleep(self._free - now())


class Relay:
    """Passes everything on to `target`, at most `rate` bytes a second in each direction.

    Args:
        target: `host:port`.
        rate: without one it does not wait.
        fates: of the first connections, one after the other; the later ones are whole.
    """

    def __init__(self, target: str, rate: float = inf, fates=()) -> None:
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.up, self.down = Way(rate), Way(rate)
        self.fates = list(fates)
        self.connections, self.broken = 0, 0
        self._small = isfinite(rate)
        self._relays = set[asyncio.Task[None]]()

    @contextlib.asynccontextmanager
    async def laid(self, host: str = NEAR, port: int | None = None):
        """Where to connect, as `host:port`; at FAR the port has the number that it has at the target."""
        port = port if port is not None else (self.target[1] if host == FAR else 0)
        server = await asyncio.start_server(
            self._relay, sock=self._listener(host, port), limit=BUFFER if self._small else AT_ONCE
        )
        try:
            yield "{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()
            await self.cut()

    async def cut(self) -> None:
        """Break all connections that stand."""
        relays = [*self._relays]
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        # A transport that was aborted closes its socket in the next turns of the loop.
        await asyncio.sleep(0.01)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fate = self.fates.pop(0) if self.fates else WHOLE
        task = asyncio.current_task()
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        ends = [writer]
        try:
            # A task that ends cancelled is an error to the streams of Python 3.11.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await self._dialled()
                ends.append(far_writer)
                await self._moved(
                    fate,
                    self.up.move(reader, far_writer, fate.up, fate.changed),
                    self.down.move(far_reader, writer, fate.down, fate.changed),
                )
        finally:
            for end in ends:
                end.transport.abort()
            self.broken += fate is not WHOLE

    async def _moved(self, fate: Fate, *ways) -> None:
        """Both ways until one of them ends, or for ever after it."""
        moving = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(moving, return_when=asyncio.FIRST_COMPLETED)
            if fate.silent:
                for way in moving:
                    way.cancel()
                await asyncio.Event().wait()
        finally:
            for way in moving:
                way.cancel()
            await asyncio.gather(*moving, return_exceptions=True)

    async def _dialled(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        line = self._socket()
        line.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(line, self.target)
        except BaseException:
            line.close()
            raise
        return await asyncio.open_connection(sock=line, limit=BUFFER if self._small else AT_ONCE)

    def _listener(self, host: str, port: int) -> socket.socket:
        listener = self._socket()  # small before it listens: connections inherit the size
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
        return listener

    def _socket(self) -> socket.socket:
        end = socket.socket()
        # asyncio does so for sockets that say they are of TCP; without it each pause costs 40 ms.
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._small:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return end
