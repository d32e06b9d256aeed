"""`Monitoring`: the metrics port of a server, and who answers its paths."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from varangian.protos.network.address import EVERYWHERE, is_loopback, join_host_port
from varangian.protos.network.listen import bind_sockets
from varangian.server.identity.tls import Security
from varangian.server.monitoring.access import Access, TlsContexts
from varangian.server.monitoring.http import HTTP_LIMITS, Answer, HttpLimits, HttpServer, Route, plain
from varangian.server.monitoring.page import page_routes, state_answer

SETTING = "server.metrics_port"


class Monitoring:
    """The metrics port of one server.

    Args:
        host: to listen at; `*` is every address of this machine.
        port: 0 for any free one.
        token: that callers show; None asks for none.
        security: for HTTPS, which an operator's certificate opens, too; None is HTTP.
        announce: called with the URL of the page when workers can connect.
        limits: of what callers may cost.
        setting: what the port is called, for whoever reads an error.

    Raises:
        ValueError: neither a token nor a certificate is asked for, and others than this machine could look.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: bytes | None = None,
        security: Security | None = None,
        announce: Callable[[str], None] = lambda _: None,
        limits: HttpLimits = HTTP_LIMITS,
        setting: str = SETTING,
    ) -> None:
        if not is_loopback(host) and token is None and security is None:
            raise ValueError(f"A metrics port at {host} needs a token or certificates. Found neither.")
        self._host, self._port = host, port
        self._security = security
        self._access = Access(token, security, frozenset({host}))
        self._announce = announce
        self._limits, self._setting = limits, setting
        self._routes: dict[str, Route] = {}
        self._url = ""
        self._asked = -math.inf
        """When the state was last asked for, in seconds from any start."""
        self._scrapes = deque[float](maxlen=2)
        """When metrics were last read, and before."""
        self._scraped = asyncio.Event()
        self.add("/healthz", lambda: plain(200, "ok"), public=True)

    def add(self, path: str, answer: Callable[[], Answer], *, public: bool = False) -> None:
        """Answer a path.

        Args:
            path: without a query.
            answer: called on the event loop for each request; what is costly it keeps for the next.
            public: whether callers see it who have not proved who they are.
        """
        self._routes[path] = Route(answer, public)

    def ready_when(self, reason: Callable[[], str]) -> None:
        """Answer `/readyz`: 200 where workers can push, 503 with the reason otherwise."""

        def answer() -> Answer:
            why = reason()
            return plain(503, why) if why else plain(200, "accepts pushes")

        self.add("/readyz", answer, public=True)

    def show(self, state: Callable[[], bytes]) -> None:
        """Show the page, with this as the JSON of the run."""
        for path, answer in page_routes().items():
            self.add(path, answer, public=True)

        def followed() -> Answer:
            self._asked = time.monotonic()
            return state_answer(state())

        self.add("/state.json", followed)
        self.add("/access", lambda: plain(200, self._access.kind), public=True)

    def expose(self, exposition: Callable[[], bytes], kind: str) -> None:
        """Answer `/metrics` with this text of this media type."""

        def answer() -> Answer:
            self._scrapes.append(time.monotonic())
            self._scraped.set()
            return Answer(exposition(), kind)

        self.add("/metrics", answer)

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Answer in this context.

        Raises:
            ListenError: the port is not to be had.
        """
        contexts = None if self._security is None else TlsContexts(self._security)
        sockets = bind_sockets(self._host, self._port, self._setting)
        port = int(sockets[0].getsockname()[1])
        host = "localhost" if self._host == EVERYWHERE else self._host
        self._url = f"http{'s' if contexts else ''}://{join_host_port(host, port)}/"
        server = HttpServer(self._routes, self._access, self._limits)
        async with server.listening(sockets, None if contexts is None else contexts.latest):
            yield

    async def farewell(self, stop: asyncio.Event) -> None:
        """Stay for a moment, where somebody follows the run, so that its end is seen.

        Whoever reads metrics in regular intervals, as Prometheus, is waited for once more: otherwise a run
        that is over would look like a server that is down.

        Args:
            stop: ends the wait for who reads metrics.
        """
        followed = time.monotonic() - self._asked < self._limits.followed
        await asyncio.gather(self._next_scrape(stop), asyncio.sleep(self._limits.farewell * followed))

    async def _next_scrape(self, stop: asyncio.Event) -> None:
        """Wait until metrics were read once more, if somebody does so regularly and often."""
        if len(self._scrapes) < 2 or stop.is_set():
            return
        before, last = self._scrapes
        left = last + (last - before) + self._limits.late - time.monotonic()
        if not 0 < left <= self._limits.scraped:
            return
        self._scraped.clear()
        waits = [asyncio.create_task(event.wait()) for event in (self._scraped, stop)]
        try:
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if self._scraped.is_set():
            await asyncio.sleep(self._limits.sent)

    def announce(self) -> None:
        """Say where it is."""
        self._announce(self._url)
