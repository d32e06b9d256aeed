"""A page that is served while its runs go on: `varangian report RUN --follow`.

It is served to this machine only. Run folders can be read by their owner alone, and anybody on the machine
can open a port; so the address has a word in it that nobody can guess, and a request whose Host header
names another machine is refused, as a page elsewhere may have had its name resolved to this one (DNS
rebinding).
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from varangian.experiments.report.page import page, runs_to_come, waiting_page
from varangian.experiments.results.filters import EVERYTHING, Filter
from varangian.experiments.results.read import Results, read_runs
from varangian.experiments.results.run import ERROR, METRICS, RESULT, ROUNDS, RUNNING, ResultsError

ADDRESS = "127.0.0.1"
TIMEOUT = 10.0
"""Seconds that a connection may stay silent in the middle of a request."""
POLL = 0.1
"""Seconds until the server sees that it should end."""
WATCHED = (ROUNDS, METRICS, RESULT, ERROR)
"""The files of a run that change while it goes on."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Type": "text/html; charset=utf-8",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LivePage:
    """The page about some paths, made again when a file of a run has changed.

    Args:
        paths: of runs, as `read_runs` takes them.
        only: the runs of them that count.

    Raises:
        ResultsError: there is no run to follow.
    """

    def __init__(self, paths: Sequence[str], only: Filter = EVERYTHING) -> None:
        self._paths = list(paths)
        self._only = only
        self._lock = threading.Lock()
        self._seen = ""
        self._page = b""
        self._evaluated = False
        self.over = False
        """Whether no run goes on and none of a plan is still to come, as of the last look."""
        self.current()

    def current(self) -> tuple[str, bytes]:
        """The page, and a tag that changes with it.

        Raises:
            ResultsError: at first, if there is no run; later the page stays as it was.
        """
        with self._lock:
            try:
                self._look()
            except (ResultsError, OSError):
                # A sweep has renamed a folder, or a file is being replaced: the next look finds it whole.
                if not self._page:
                    raise
            return f'"{hashlib.blake2b(self._page, digest_size=12).hexdigest()}"', self._page

    def _look(self) -> None:
        notes: list[str] = []
        results = self._only(read_runs(self._existing(), notes.append))
        seen = _fingerprint(results)
        if seen != self._seen:
            self._page = self._make(results, notes).encode()
            self._seen = seen
            self.over = not runs_to_come(results) and not any(run.running for run in results)

    def _make(self, results: Results, notes: Sequence[str]) -> str:
        try:
            made = page(results, notes=notes, only=self._only, follow=True)
        except ResultsError as error:
            if self._evaluated:
                raise
            return waiting_page(str(error))  # nothing is evaluated yet
        self._evaluated = True
        return made

    def _existing(self) -> Iterator[str]:
        """The paths; of a run that a sweep had in hand and that has ended, the one it has now."""
        for path in self._paths:
            renamed = path.rstrip("/").removesuffix(RUNNING)
            yield renamed if not Path(path).exists() and Path(renamed).exists() else path


class PageServer:
    """A server of one page on a free port of this machine; `start` returns, `close` ends it."""

    def __init__(self, live: LivePage) -> None:
        word = secrets.token_urlsafe(16)
        self._server = _Server((ADDRESS, 0), _handler(live, f"/{word}/"))
        self._server.daemon_threads = True
        self.url = f"http://{ADDRESS}:{self._server.server_port}/{word}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL,), name="report", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves in the middle of an answer is no error."""


def follow(live: LivePage, server: PageServer, say: Callable[[str], None], seconds: float = 1.0) -> None:
    """Serve until Ctrl-C; says when the runs are over."""
    server.start()
    waiting, said = threading.Event(), False
    try:
        while not waiting.wait(seconds):
            if not said and live.over:
                said = True
                say("The runs are over. The page can still be looked at; Ctrl-C ends it.")
            elif not said:
                live.current()
    finally:
        server.close()


def _fingerprint(results: Results) -> str:
    """The same as long as no file of a run has changed."""
    states: list[str] = []
    for run in results:
        for name in WATCHED:
            try:
                state = (run.folder / name).stat()
            except OSError:
                continue
            states.append(f"{run.folder}/{name} {state.st_mtime_ns} {state.st_size}")
    return hashlib.blake2b("\n".join(states).encode()).hexdigest()


def _handler(live: LivePage, path: str) -> type[BaseHTTPRequestHandler]:
    """A handler that knows its page."""

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT

        def do_GET(self) -> None:
            _, port = self.connection.getsockname()
            if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
                self._answer(HTTPStatus.FORBIDDEN, b"This page is served to this machine only.\n")
            elif not secrets.compare_digest(self.path.encode(), path.encode()):
                self._answer(HTTPStatus.NOT_FOUND, b"There is no such page.\n")
            else:
                self._page()

        def _page(self) -> None:
            tag, content = live.current()
            if self.headers.get("If-None-Match") == tag:
                self._answer(HTTPStatus.NOT_MODIFIED, b"", {"ETag": tag})
            else:
                self._answer(HTTPStatus.OK, content, {"ETag": tag})

        def _answer(self, status: HTTPStatus, content: bytes, more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            kind = {} if status is HTTPStatus.OK else {"Content-Type": "text/plain; charset=utf-8"}
            for name, value in {**HEADERS, **kind, **(more or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not worth a line."""

    return Handler
