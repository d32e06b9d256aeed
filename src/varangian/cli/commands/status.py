"""`varangian status`: where a run stands and what became of each worker, from its folder or its server."""

from __future__ import annotations

import argparse
import http.client
import json
import math
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

from varangian.cli.main import OK, CommandError
from varangian.cli.views.status import plain_lines
from varangian.cli.views.terminal import NOTE, printable
from varangian.files import settings_file, user_path
from varangian.launch.result import RunError

RUNS, MANIFEST = "runs", "manifest.json"
"""The folder of run folders, unless `output` says another, and a file that each of them has."""
PERIOD = 1.0
"""Seconds between two looks."""
PATIENCE = 5
"""Looks in a row without an answer after which a server that is watched counts as gone."""
LARGEST = 64 << 20
"""Bytes of an answer."""

State: TypeAlias = Mapping[str, Any]
"""An `Overview` as JSON has it."""
Look: TypeAlias = Callable[[], State]
"""Looks at the run; raises CommandError."""


def command(args: argparse.Namespace) -> int:
    """Show the run."""
    if args.run_folder is not None and (args.server or args.url):
        raise CommandError("RUN and --server or --url should not be given both. Leave one of them out")
    if args.serve is not None:
        if args.server or args.url:
            raise CommandError(
                "--serve shows a run folder. A server has its own page: start it with server.metrics_port=0"
            )
        return _serve(_folder(args.run_folder), args.serve)
    states = _states(_look(args), watch=args.watch, far=bool(args.server or args.url))
    form = args.format
    if form == "auto":
        form = "rich" if sys.stdout.isatty() else "plain"
    if form == "rich":
        return _show_rich(states, watch=args.watch)
    before = ""
    for state in states:
        text = json.dumps(state) if form == "json" else _plain(state)
        if text != before:
            print(text, flush=True)
        before = text
    return OK


def _states(look: Look, *, watch: bool, far: bool) -> Iterator[State]:
    """The state of a run, or all of them until it is over.

    Args:
        look: at the run.
        watch: whether to go on after the first.
        far: whether a server is asked, which ends with its run and may be away for a moment.

    Raises:
        CommandError: it cannot be looked at.
    """
    state = look()
    yield state
    missed = 0
    while watch and state["state"] == "running":
        time.sleep(PERIOD)
        try:
            state = look()
        except CommandError as error:
            missed += 1
            if far and missed < PATIENCE:
                continue
            if not far:
                raise
            ended = "It did before: the run is over, or its server has stopped"
            raise CommandError(
                f"{error}. {ended}. Its folder has the rest: varangian status RUN"
            ) from error
        missed = 0
        yield state


def _plain(state: State) -> str:
    return "\n".join(plain_lines(state))


def _show_rich(states: Iterator[State], *, watch: bool) -> int:
    from rich.console import Console
    from rich.live import Live

    from varangian.cli.views.status import rich_view

    console = Console()
    if not watch:
        console.print(rich_view(next(states)))
        return OK
    state: State | None = None
    try:
        # What has no room on the screen is cut off while it changes, and shown at the end.
        with Live(console=console, auto_refresh=False, transient=True) as screen:
            for state in states:
                screen.update(rich_view(state), refresh=True)
    finally:
        if state is not None:
            console.print(rich_view(state))
    return OK


def _look(args: argparse.Namespace) -> Look:
    if args.url:
        return _url_look(args)
    if args.server:
        from varangian.cli.commands.status_of_server import server_look

        return server_look(args)
    return _folder_look(_folder(args.run_folder))


def _folder(given: str | None) -> Path:
    """The run folder that is meant: the one that is given, or the newest in a folder of run folders.

    Raises:
        CommandError: there is none.
    """
    folder = user_path(RUNS if given is None else given)
    if given is not None and settings_file(folder).exists():
        return folder
    found = [(path.stat().st_mtime, path.parent) for path in folder.glob(f"*/{MANIFEST}")]
    if found:
        return max(found)[1]
    if given is not None:
        return folder
    raise CommandError(
        f"{RUNS}/ should hold run folders, of which the newest is shown. Found none here. "
        "Name one: varangian status RUN; or a server: varangian status --server HOST:PORT"
    )


def _folder_look(folder: Path) -> Look:
    from varangian.launch.monitoring.folder import FolderView

    try:
        view = FolderView(folder)
    except RunError as error:
        raise CommandError(str(error)) from error

    def look() -> State:
        try:
            found: State = json.loads(view.overview().json())
        except RunError as error:
            raise CommandError(str(error)) from error
        except (TypeError, ValueError, AttributeError) as error:
            rule = "should be the folder of a run, as its server wrote it"
            raise CommandError(f"{folder} {rule}. A file in it has another form: {error}") from error
        return found

    return look


def _url_look(args: argparse.Namespace) -> Look:
    url = urlsplit(args.url)
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
        raise CommandError(f"--url should be as http://127.0.0.1:9464. Found {printable(args.url)}")
    address = f"{url.scheme}://{url.netloc}/state.json"
    headers: dict[str, str] = {}
    if args.token_file:
        from varangian.server.monitoring.access import TokenError, read_token

        try:
            headers["Authorization"] = f"Bearer {read_token(Path(args.token_file)).decode()}"
        except TokenError as error:
            raise CommandError(str(error)) from error
    context = _client_context(args.certs) if url.scheme == "https" else None
    handlers: list[Any] = [urllib.request.ProxyHandler({}), _NoRedirect()]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)

    def look() -> State:
        request = urllib.request.Request(address, headers=headers)
        try:
            with opener.open(request, timeout=args.timeout) as reply:
                found = json.loads(reply.read(LARGEST))
        except urllib.error.HTTPError as error:
            said = printable(error.read(NOTE).decode("utf-8", "replace").strip(), NOTE)
            raise CommandError(f"{address} answers {error.code}: {said}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CommandError(f"{address} does not answer: {_reason(error)}") from error
        except RecursionError:
            found = None
        if not _is_state(found):
            raise CommandError(f"{address} should be the state of a run. Found something else there")
        return cast("State", found)

    return look


def _reason(error: Exception) -> str:
    """Why there is no answer, with what to do where a certificate was not believed."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = (
            "With --certs DIR the authority of a bundle is believed, and with SSL_CERT_FILE=ca.pem that one"
        )
        return f"its certificate was not believed: {printable(reason.verify_message, NOTE)}. {hint}"
    if isinstance(reason, ssl.SSLError) and reason.reason == "WRONG_VERSION_NUMBER":
        return "it speaks no TLS. Is it http:// there, without the s?"
    if isinstance(reason, http.client.RemoteDisconnected | ConnectionResetError):
        return "it ends the connection. Is it https:// there?"
    said = reason.strerror if isinstance(reason, OSError) else ""
    return printable(said or str(reason) or type(reason).__name__, NOTE)


def _is_state(found: Any) -> bool:
    """Whether an answer has the form of the state of a run, as far as views rely on it."""
    try:
        numbers = [found["round"], found["rounds"], found["workers_total"], *found["refusals"].values()]
        numbers += found["scores"].values()
        for worker in found["workers"]:
            numbers += [
                cell for cell in worker["weights"] if cell is not None and not isinstance(cell, str)
            ]
        numbers += [one for one in (found.get(name) for name in ("present", "rate", "elapsed")) if one]
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
            return False
        for _ in plain_lines(found):
            pass
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is shown to nobody else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _client_context(certs: str | None) -> ssl.SSLContext:
    """TLS with the bundle of the caller, whose authority is that of the server."""
    context = ssl.create_default_context()
    if certs is None:
        return context
    from varangian.protos.identity.bundle import CERTIFICATE, KEY, Bundle, BundleError

    try:
        bundle = Bundle.load(Path(certs))
    except BundleError as error:
        raise CommandError(str(error)) from error
    context = ssl.create_default_context(cadata=bundle.ca.decode("ascii", "replace"))
    context.load_cert_chain(bundle.path / CERTIFICATE, bundle.path / KEY, password=lambda: "")
    return context


def _serve(folder: Path, port: int) -> int:
    """Show the page of a run folder until Ctrl-C."""
    import asyncio

    from varangian.launch.monitoring.folder import FolderView
    from varangian.protos.network.listen import ListenError
    from varangian.server.monitoring.monitoring import Monitoring

    def say(url: str) -> None:
        print(f"the page of {folder} is {url} until Ctrl-C", flush=True)

    async def serve() -> None:
        monitoring = Monitoring("127.0.0.1", port, announce=say, setting="--serve")
        monitoring.show(Cached(view).state)
        async with monitoring.listening():
            monitoring.announce()
            await asyncio.Event().wait()

    try:
        view = FolderView(folder)
        view.overview()
        asyncio.run(serve())
    except (RunError, ListenError) as error:
        raise CommandError(str(error)) from error
    return OK


class Cached:
    """The state of a run folder, read again once a second at most."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._made: tuple[float, bytes] | None = None

    def state(self) -> bytes:
        now = time.monotonic()
        if self._made is None or now - self._made[0] >= PERIOD:
            try:
                self._made = now, self._view.overview().json()
            except RunError:
                if self._made is None:
                    raise
                self._made = now, self._made[1]
        return self._made[1]
