"""Lines as bad as one likes: TCP relays with real sockets, slow, far, cut in the middle, or silent."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
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
UNDER_WAY = 64
"""Moves that a line with latency holds, as the window of a connection limits what is under way."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose end is a reset, whatever is still to be sent."""


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


class Heard:
    """A reader of one end of a connection that notes when something came."""

    def __init__(self, reader: asyncio.StreamReader, connection: "Connection") -> None:
        self._reader, self._connection = reader, connection

    async def read(self, n: int) -> bytes:
        data = await self._reader.read(n)
        self._connection.last = asyncio.get_running_loop().time()
        return data


class Connection:
    """One connection through a relay."""

    def __init__(self) -> None:
        self.last = asyncio.get_running_loop().time()
        """When something came from either end."""

    async def idle(self, seconds: float) -> None:
        """Until nothing has come for so long."""
        now = asyncio.get_running_loop().time
        while (left := self.last + seconds - now()) > 0:
            await asyncio.sleep(left)


class Way:
    """One direction, shared by all connections.

    Args:
        rate: bytes a second.
        latency: seconds that a byte is under way.
        jitter: seconds that it may take longer, at random; bytes never overtake each other.
    """

    def __init__(self, rate: float, latency: float = 0.0, jitter: float = 0.0) -> None:
        self.rate, self.latency, self.jitter = rate, latency, jitter
        self.whole = asyncio.Event()
        """Not set while nothing comes through, not even the end of a connection."""
        self.whole.set()
        self.moved = 0
        self.waiting = 0
        """Connections with something that does not come through just now."""
        self.longest = 0.0
        """Seconds without a byte between two."""
        self._at_once = max(1, int(rate * TICK)) if isfinite(rate) else AT_ONCE
        self._lock = asyncio.Lock()
        self._free = 0.0
        self._random = random.Random(0)

    async def move(
        self,
        reader: asyncio.StreamReader | Heard,
        writer: asyncio.StreamWriter,
        left: float,
        changed: bool = False,
    ) -> None:
        """Until one end hangs up, or so many bytes have gone through."""
        if not self.latency:
            await self._read(reader, left, changed, lambda data: self.write(writer, data))
            await self.whole.wait()
            return
        under_way = asyncio.Queue[tuple[float, bytes]](UNDER_WAY)
        arriving = asyncio.create_task(self._arrive(under_way, writer))
        sending = asyncio.create_task(
            self._read(reader, left, changed, lambda data: under_way.put((self._due(), data)))
        )
        try:
            await asyncio.wait({arriving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done():
                await sending
                await under_way.put((self._due(), b""))
            await arriving
        finally:
            for task in (arriving, sending):
                task.cancel()
            await asyncio.gather(arriving, sending, return_exceptions=True)

    async def _read(
        self,
        reader: asyncio.StreamReader | Heard,
        left: float,
        changed: bool,
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        while left > 0 and (data := await reader.read(int(min(self._at_once, left)))):
            left -= len(data)
            if changed and not left:
                data, left = data[:-1] + bytes([data[-1] ^ 1]), inf
            if isfinite(self.rate):
                await self._paced(len(data))
            await send(data)

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """The last step: the bytes arrive at the other end."""
        self.waiting += 1
        try:
            await self.whole.wait()
        finally:
            self.waiting -= 1
        self.moved += len(data)
        writer.write(data)
        await writer.drain()

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        """Write what is under way when it is due, up to the end of the connection."""
        now = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - now())
            if not data:
                await self.whole.wait()
                return
            await self.write(writer, data)

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + self.latency + self.jitter * self._random.random()

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
        latency: seconds to the other end, one way.
        jitter: seconds that it may be more.
        idle: seconds without a byte in either direction after which a connection breaks, as in a router
            that forgets it.
    """

    def __init__(
        self,
        target: str,
        rate: float = inf,
        fates=(),
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        idle: float = inf,
    ) -> None:
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.up, self.down = (Way(rate, latency, jitter) for _ in range(2))
        self.idle = idle
        self.fates = list(fates)
        self.connections, self.broken = 0, 0
        self._small = isfinite(rate)
        self._relays = set[asyncio.Task[None]]()
        self._ends = set[asyncio.StreamWriter]()

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
            self.heal()
            await self.cut()

    def hole(self) -> None:
        """Let nothing through from now on, and tell neither end: a black hole."""
        for way in (self.up, self.down):
            way.whole.clear()

    def heal(self) -> None:
        """Let everything through again, also what was sent meanwhile."""
        for way in (self.up, self.down):
            way.whole.set()

    async def reset(self) -> None:
        """Break all connections that stand at once: what is under way is lost."""
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
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
        self._ends.add(writer)
        connection = Connection()
        try:
            # A task that ends cancelled is an error to the streams of Python 3.11.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self.up.whole.wait()
                far_reader, far_writer = await self._dialled()
                ends.append(far_writer)
                self._ends.add(far_writer)
                await self._moved(
                    fate,
                    self.up.move(Heard(reader, connection), far_writer, fate.up, fate.changed),
                    self.down.move(Heard(far_reader, connection), writer, fate.down, fate.changed),
                    *([connection.idle(self.idle)] if isfinite(self.idle) else []),
                )
        finally:
            for end in ends:
                end.transport.abort()
            self._ends.difference_update(ends)
            self.broken += fate is not WHOLE

    async def _moved(self, fate: Fate, *ways) -> None:
        """Both ways until one of them ends or nothing has come for too long, or for ever after it."""
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
