"""HTTP/1.1 server for a few paths that are read: it bounds what callers cost, whoever they are.

It lives on the event loop of the run and must not be felt there. New connections and requests are taken at
a rate of their own, and who comes faster waits in the queues of the system. A connection may send one head
of a request at a time, in a bounded time, and no body. There are few connections; when all are taken, a new
one ends the oldest that has not asked for anything yet. h11 reads and writes the protocol, which is too
large to be parsed by hand: it is 0.1 MB, pure Python and does no I/O, where a whole server like aiohttp has
8 MB and limits of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from socket import socket
from typing import Final

import h11

from varangian.protos.text import quote
from varangian.server.monitoring.access import Access, peer_of
from varangian.structured_logs import event

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    # A copy may be kept, but is asked for again: with its ETag that costs a few bytes.
    ("Cache-Control", "no-cache"),
)
"""Of every answer: no page but ours may frame, load or steer what is shown, and ours loads nothing else."""


@dataclass(frozen=True)
class HttpLimits:
    """Limits of the port, and of one connection."""

    head: int = 8 << 10
    """Bytes of the head of a request."""
    handshake: float = 5.0
    """Seconds for TLS."""
    request: float = 5.0
    """Seconds in which the head of a request has to come."""
    idle: float = 15.0
    """Seconds between two requests."""
    answer: float = 20.0
    """Seconds in which an answer has to be taken."""
    age: float = 3600.0
    """Seconds of a connection: then it has to prove anew who it is."""
    connections: int = 32
    connections_of_one: int = 16
    """Of one address."""
    connecting: float = 20.0
    """New connections in a second."""
    requests: float = 60.0
    """Requests in a second."""
    burst: float = 1.0
    """Seconds whose connections and requests may come at once."""
    backlog: int = 16
    """Connections that wait in the queue of the system."""
    followed: float = 3.0
    """Seconds since the state was asked for until nobody counts as following the run."""
    farewell: float = 2.0
    """Seconds for which the port stays at the end of a run that somebody follows: two looks."""
    scraped: float = 20.0
    """Seconds for which it stays at most until metrics are read once more."""
    late: float = 1.0
    """Seconds by which who reads them may be late."""
    sent: float = 0.5
    """Seconds in which what was read last is on its way."""


HTTP_LIMITS = HttpLimits()


@dataclass(frozen=True)
class Answer:
    """An answer to GET."""

    body: bytes
    kind: str = TEXT
    """Its media type."""
    status: int = 200
    etag: str = ""
    """Names this body; who has it already is not sent it again."""


def tagged(body: bytes, kind: str) -> Answer:
    """An answer that is sent again only when it has changed."""
    return Answer(body, kind, etag=f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')


@dataclass(frozen=True)
class Route:
    """Who answers a path."""

    answer: Callable[[], Answer]
    """Called on the event loop, at the rate of requests."""
    public: bool = False
    """Whether it is answered to callers that have not proved who they are."""


@dataclass
class Pace:
    """Lets something happen at a rate: who comes too early waits."""

    rate: float
    burst: float
    _next: float = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        now = time.monotonic()
        self._next = max(self._next, now - self.burst) + 1 / self.rate
        if (wait := self._next - now) > 0:
            await asyncio.sleep(wait)


@dataclass(eq=False)
class Connection:
    """One connection of a caller."""

    address: str
    task: asyncio.Task[None] | None = None
    asked: bool = False
    """Whether it has sent a whole request."""


@dataclass
class HttpServer:
    """Answers GET and HEAD for the paths of its routes."""

    routes: Mapping[str, Route]
    access: Access
    limits: HttpLimits = HTTP_LIMITS
    _connections: list[Connection] = field(default_factory=list[Connection])

    def __post_init__(self) -> None:
        self._connecting = Pace(self.limits.connecting, self.limits.burst)
        self._requests = Pace(self.limits.requests, self.limits.burst)

    @asynccontextmanager
    async def listening(
        self, sockets: Sequence[socket], tls: Callable[[], ssl.SSLContext] | None = None
    ) -> AsyncGenerator[None]:
        """Answer in this context, and end all connections after it.

        Args:
            sockets: bound; they are closed.
            tls: gives the context for the next connection; None is without TLS.
        """
        tasks: list[asyncio.Task[None]] = []
        try:
            for listener in sockets:
                listener.setblocking(False)
                listener.listen(self.limits.backlog)
                tasks.append(asyncio.create_task(self._accept(listener, tls)))
            yield
        finally:
            tasks += [connection.task for connection in self._connections if connection.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for listener in sockets:
                listener.close()

    async def _accept(self, listener: socket, tls: Callable[[], ssl.SSLContext] | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._connecting.turn()
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is free, or the caller has gone already
                log.debug("metrics port: %s", error)
                await asyncio.sleep(1.0)
                continue
            connection = Connection(str(peer[0]))
            if not self._make_room(connection.address):
                accepted.close()
                continue
            self._connections.append(connection)
            connection.task = asyncio.create_task(self._serve(connection, accepted, tls))

    def _make_room(self, address: str) -> bool:
        """See that one more connection may be there, by ending another one if need be."""
        of_one = [one for one in self._connections if one.address == address]
        crowded = (
            of_one
            if len(of_one) >= self.limits.connections_of_one
            else self._connections
            if len(self._connections) >= self.limits.connections
            else None
        )
        if crowded is None:
            return True
        oldest = next((one for one in crowded if not one.asked), None)
        if oldest is None or oldest.task is None:
            return False
        oldest.task.cancel()
        self._connections.remove(oldest)
        return True

    async def _serve(
        self, connection: Connection, accepted: socket, tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        """Serve one connection to its end, whatever comes over it."""
        transport: asyncio.Transport | None = None
        try:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(self.limits.head, loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            context = None if tls is None else tls()
            # TLS begins here and not in a listener, so that this task and its limits are there before it.
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self.limits.handshake,
                ssl_shutdown_timeout=None if context is None else 1.0,
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.age):
                    await self._converse(connection, reader, writer)
            writer.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
        except (OSError, ssl.SSLError, TimeoutError, EOFError) as error:
            log.debug("metrics port: %s from %s", error, quote(connection.address, 70))
        except Exception:
            log.exception("metrics port: an answer has failed", extra=event("metrics_failed"))
        finally:
            if transport is None:
                accepted.close()
            else:
                transport.abort()
            with suppress(ValueError):
                self._connections.remove(connection)

    async def _converse(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer request after request."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.head)
        wait = self.limits.request
        while True:
            try:
                async with asyncio.timeout(wait):
                    request = await self._read(http, reader)
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint if error.error_status_hint in (431, 501) else 400
                with suppress(h11.LocalProtocolError):
                    await self._send(http, writer, plain(status), close=True)
                return
            except TimeoutError:
                return
            if request is None:
                return
            connection.asked = True
            await self._requests.turn()
            answer, headers = self._answer(request, connection.address, writer)
            bare = request.method == b"HEAD"
            has_body = http.their_state is not h11.DONE
            await self._send(http, writer, answer, headers, bare=bare, close=has_body)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()
            wait = self.limits.idle

    async def _read(self, http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
        """The next request; None when the other end has gone."""
        request: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                if request is not None:  # the beginning of a body, of which nothing is read
                    return request
                http.receive_data(await reader.read(self.limits.head))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage | h11.Data) and request is not None:
                return request
            else:
                return None

    def _answer(
        self, request: h11.Request, address: str, writer: asyncio.StreamWriter
    ) -> tuple[Answer, list[tuple[str, str]]]:
        """The answer to a request, and headers of it."""
        given: dict[str, str] = {}
        for name, value in request.headers:
            given.setdefault(name.decode("ascii"), value.decode("latin-1"))
        if request.method not in (b"GET", b"HEAD"):
            return plain(405), [("Allow", "GET, HEAD")]
        if not self.access.is_ours(given.get("host", "")):
            self.access.note_refused(address, f"{given.get('host', '')[:100]} is no name of this machine")
            return plain(421, "This name is not one of this machine. Address it as localhost."), []
        path = request.target.decode("latin-1").partition("?")[0]
        route = self.routes.get(path)
        if route is None:
            return plain(404), []
        if not route.public:
            peer = peer_of(writer.get_extra_info("ssl_object"))
            if reason := self.access.why_not(given.get("authorization"), peer):
                self.access.note_refused(address, reason)
                return plain(401, reason), [("WWW-Authenticate", 'Bearer realm="varangian"')]
        answer = route.answer()
        if answer.etag and answer.etag in given.get("if-none-match", ""):
            return Answer(b"", answer.kind, 304, answer.etag), []
        return answer, []

    async def _send(
        self,
        http: h11.Connection,
        writer: asyncio.StreamWriter,
        answer: Answer,
        headers: Sequence[tuple[str, str]] = (),
        *,
        bare: bool = False,
        close: bool = False,
    ) -> None:
        """Send an answer; `bare` is without its body."""
        known = [*HEADERS, *headers]
        if answer.status != 304:
            known += [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body)))]
        if answer.etag:
            known.append(("ETag", answer.etag))
        if close:
            known.append(("Connection", "close"))
        phrase = HTTPStatus(answer.status).phrase
        head = http.send(h11.Response(status_code=answer.status, headers=known, reason=phrase))
        body = b"" if bare or not answer.body else http.send(h11.Data(data=answer.body))
        end = http.send(h11.EndOfMessage()) or b""
        writer.write((head or b"") + (body or b"") + end)
        async with asyncio.timeout(self.limits.answer):
            await writer.drain()


def plain(status: int, sentence: str = "") -> Answer:
    """An answer of one sentence."""
    text = sentence or HTTPStatus(status).phrase
    return Answer(f"{text}\n".encode("utf-8", "replace"), status=status)
