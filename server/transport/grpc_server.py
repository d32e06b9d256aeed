"""The gRPC server: its port, and the options that bound what connections and messages may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio

from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.address import EVERYWHERE, join_host_port
from varangian.protos.network.descriptors import connections
from varangian.protos.network.grpc_options import KEEPALIVE, LOOKAHEAD, windows
from varangian.protos.network.listen import PortInUse, any_address, bind_sockets, in_use

AGE = 3600
"""Seconds for which a connection takes new calls: who goes on has to connect anew, and is verified anew."""
LONGEST = 24 * 3600
"""Seconds after that in which its open calls may end: longer than any transfer takes on a slow line."""

STREAMS = 8
"""Calls that one connection may have open. A worker has at most six, and one connection."""
METADATA = 16 << 10
"""Bytes of the headers of one call."""


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallHandlers(grpc.GenericRpcHandler):
    """The handlers of calls by name, for as long as the server runs.

    For each call gRPC leaves a circle of references to what it was given here. So that it does not keep the
    run in memory until the garbage collector comes, there is nothing in it after `clear`.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Serve the calls of a service, by their names in it."""
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call; None for a call that there is not."""
        return self._handlers.get(handler_call_details.method)

    def clear(self) -> None:
        """Forget all of them."""
        self._handlers = {}


def options(workers: int, lookahead: int = LOOKAHEAD) -> tuple[tuple[str, int], ...]:
    """The options of gRPC for a run with so many workers.

    Args:
        workers: their number.
        lookahead: bytes of a call that may be sent before they are asked for.
    """
    places = connections(workers)
    return (
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_metadata_size", METADATA),
        ("grpc.max_concurrent_streams", STREAMS),
        # One more is closed as soon as it is accepted: no handshake, and no memory.
        ("grpc.max_allowed_incoming_connections", places),
        # Calls that wait for the event loop. Beyond these numbers gRPC drops calls by chance, whoever makes
        # them: here that is more than all connections together can have.
        ("grpc.server.max_pending_requests", places * STREAMS + 1),
        ("grpc.server.max_pending_requests_hard_limit", 2 * places * STREAMS + 1),
        # Identity only: a small compressed message can unpack into a large one.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Otherwise a second server shares the port in silence and takes half of the workers.
        ("grpc.so_reuseport", 0),
        # For whoever connects and then says nothing, or nothing that is HTTP/2.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # For whoever connects and then calls nothing. A worker has a call open for as long as it is there.
        ("grpc.max_connection_idle_ms", 20_000),
        ("grpc.max_connection_age_ms", AGE * 1000),
        ("grpc.max_connection_age_grace_ms", LONGEST * 1000),
        *windows(lookahead),
        *KEEPALIVE,
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    )


def bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
    setting: str = "server.port",
) -> str:
    """Listen, with TLS when there are credentials, and say where: `host:port`.

    Raises:
        ListenError: that cannot be done there; PortInUse is one.
    """
    name = any_address() if host == EVERYWHERE else host
    where = join_host_port(name, probe(host, port, setting))
    try:
        if credentials is None:
            return join_host_port(name, server.add_insecure_port(where))
        return join_host_port(name, server.add_secure_port(where, credentials))
    except RuntimeError:
        raise PortInUse(in_use(name, port, setting)) from None


def probe(host: str, port: int, setting: str = "server.port") -> int:
    """A port that is free on every address of the host; 0 if any will do.

    gRPC does not say why it could not bind, and is content with one address out of several.
    """
    found = bind_sockets(host, port, setting)
    number = int(found[0].getsockname()[1])
    for listener in found:
        listener.close()
    return number if len(found) > 1 else port
