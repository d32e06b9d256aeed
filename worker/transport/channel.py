"""The gRPC channel of a worker, and its calls in bytes: messages are parsed here, not by gRPC."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc.aio

from varangian.protos import ps_pb2
from varangian.protos.identity.bundle import Bundle, BundleError, Role
from varangian.protos.identity.watched_files import Change
from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.address import split_address
from varangian.protos.network.dial import find_proxy, open_aio_channel
from varangian.protos.network.grpc_options import KEEPALIVE, LOOKAHEAD, windows
from varangian.structured_logs import event
from varangian.worker.transport.diagnosis import Diagnosis, diagnose
from varangian.worker.transport.payloads.data_channel import DataChannel, LeasedConnection
from varangian.worker.transport.tls import Proof, credentials, has_changed, watch_bundle

log = logging.getLogger(__name__)

SERVICE = ps_pb2.DESCRIPTOR.services_by_name["ParameterServer"].full_name

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # Tries are counted and explained here; gRPC would repeat calls in silence.
    ("grpc.enable_retries", 0),
    # A connection is an identity: two workers of one process must not share it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    *KEEPALIVE,
)


class Stub:
    """The calls of a worker. No message object ever holds a payload."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # What gRPC's types do not know is that bytes go through as they are.
        self.join: Any = channel.unary_unary(f"/{SERVICE}/Join")
        self.pull: Any = channel.unary_stream(f"/{SERVICE}/Pull")
        self.pull_inline: Any = channel.unary_unary(f"/{SERVICE}/PullInline")
        self.push: Any = channel.stream_unary(f"/{SERVICE}/Push")
        self.push_inline: Any = channel.unary_unary(f"/{SERVICE}/Push")
        self.attend: Any = channel.unary_stream(f"/{SERVICE}/Attend")
        self.decline: Any = channel.unary_unary(f"/{SERVICE}/Decline")


class Connection:
    """The connection of a worker to the server, replaced when there is another certificate to show.

    gRPC for Python reads the certificate of a client once for each channel. So when there is another one on
    the disk, the connection is replaced between two calls.

    Args:
        server: `host:port`.
        proof: a token, or the bundle that is shown over TLS.
        lookahead: bytes that the server may send before they are asked for.
    """

    def __init__(self, server: str, proof: Proof, lookahead: int = LOOKAHEAD) -> None:
        self._server = server
        self._options = *OPTIONS, *windows(lookahead)
        self._bundle = proof if isinstance(proof, Bundle) else None
        self._watched = None if self._bundle is None else watch_bundle(self._bundle)
        self.data_channel = DataChannel(server, encrypted=self._bundle is not None)
        self._open()

    async def close(self) -> None:
        self.data_channel.close()
        await self._channel.close()

    async def reconnect(self) -> None:
        """Replace the connection, which may be dead or show a certificate that is not valid any more."""
        if self._bundle is not None:
            self._bundle = await asyncio.to_thread(_reload, self._bundle)
        await self._replace()

    async def refresh(self) -> None:
        """Show another certificate from now on if there is one on the disk; looks at most once a second."""
        if self._watched is None:
            return
        change = self._watched.look()
        if change is Change.CHANGED and self._watched.value != self._bundle:
            self._bundle = self._watched.value
            log.info(
                "security: the certificate of %s was renewed",
                self._bundle.name,
                extra=event("certificate_renewed"),
            )
            await self._replace()
        elif change is Change.FAILED and self._watched.failure is not None:
            log.warning(
                "security: the old certificate stays in use: %s",
                self._watched.failure.error,
                extra=event("certificate_kept"),
            )

    async def take_new_certificate(self) -> bool:
        """Take up another certificate than the one that was refused; whether there is, or may soon be, one.

        If there is, it is shown from now on. A bundle that is being replaced cannot be used for a moment.
        """
        shown = self._bundle
        if shown is None:
            return False
        try:
            found = await asyncio.to_thread(Bundle.load, shown.path, Role.WORKER)
        except (BundleError, OSError) as error:
            log.warning(
                "security: there is no other certificate yet: %s", error, extra=event("certificate_awaited")
            )
            return await asyncio.to_thread(has_changed, shown)
        if found == shown:
            return False
        self._bundle = found
        await self._replace()
        return True

    async def _replace(self) -> None:
        before = self._channel
        self.data_channel.close()
        self._open()
        await before.close()

    @asynccontextmanager
    async def calling(
        self, begin: Callable[..., Any], identity: tuple[tuple[str, str], ...]
    ) -> AsyncGenerator[tuple[Any, LeasedConnection], None]:
        """A call whose payload may travel beside it. It is cancelled if it has not ended by itself."""
        async with self.data_channel.lease() as leased:
            call = begin(metadata=(*identity, *leased.headers))
            try:
                yield call, leased
            finally:
                call.cancel()

    async def diagnose(self, hint: str) -> Diagnosis:
        """Diagnose a failed connection: what is wrong, or a hint; and what the address stands for."""
        secure = self._bundle is not None
        found = await asyncio.to_thread(diagnose, self._server, self._bundle)
        where = await asyncio.to_thread(describe_server, self._server, secure)
        return replace(found, sentence=f"{found.sentence or hint} {where}".lstrip())

    def _open(self) -> None:
        if self._bundle is None:
            self._channel = open_aio_channel(self._server, None, self._options)
        else:
            self._channel = open_aio_channel(self._server, credentials(self._bundle), self._options)
        self.calls = Stub(self._channel)


def _reload(bundle: Bundle) -> Bundle:
    """The bundle as it is on the disk now; as it was if that cannot be used."""
    try:
        return Bundle.load(bundle.path, Role.WORKER)
    except BundleError as error:
        log.warning(
            "security: the old certificate stays in use: %s", error, extra=event("certificate_kept")
        )
        return bundle


def describe_server(server: str, secure: bool) -> str:
    """The addresses of `host:port` just now, and whether it is called over TLS. May block for seconds."""
    how = "over TLS" if secure else "in clear text"
    where = split_address(server)
    if where is None:
        return f"{server} is no HOST:PORT."
    try:
        found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"The name {where[0]!r:.100} stands for no address here ({error.strerror})."
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    through = find_proxy(server)
    way = f" through the proxy {through}" if through else ""
    return f"It was called {how} at {', '.join(addresses)}, port {where[1]}{way}."
