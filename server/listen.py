"""Where the server listens, and on which terms."""

from __future__ import annotations

import errno
import socket

import grpc
import grpc.aio

from varangian.protos import codec
from varangian.protos.flow import SIGNS_OF_LIFE, WINDOWS

OPTIONS = (
    ("grpc.max_receive_message_length", codec.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", codec.MESSAGE_LIMIT),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
    # Identity only: a small compressed message can unpack into a large one.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Otherwise a second server shares the port in silence and takes half of the workers.
    ("grpc.so_reuseport", 0),
    # For whoever connects and then says nothing, or nothing that is HTTP/2.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # For whoever connects and then calls nothing: a process has only so many files.
    ("grpc.max_connection_idle_ms", 60_000),
    *WINDOWS,
    *SIGNS_OF_LIFE,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class ListenError(OSError):
    """The server cannot listen where it should."""


class PortInUse(ListenError):
    """Another process listens there."""


def bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Listen, with TLS when there are credentials, and say where: `host:port`."""
    authority = f"[{host}]" if ":" in host else host
    probe(host, port)
    where = f"{authority}:{port}"
    try:
        if credentials is None:
            return f"{authority}:{server.add_insecure_port(where)}"
        return f"{authority}:{server.add_secure_port(where, credentials)}"
    except RuntimeError:
        raise PortInUse(in_use(authority, port)) from None


def probe(host: str, port: int) -> None:
    """Ask the operating system first: gRPC does not say why it could not bind."""
    bound(host, port).close()


def bound(host: str, port: int, setting: str = "server.port") -> socket.socket:
    """A socket that can listen there.

    Args:
        host: name or address.
        port: 0 for any free one.
        setting: what the port is called in the configuration, for whoever reads an error.

    Raises:
        ListenError: it cannot; PortInUse when another process does.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(in_use(host, port, setting)) from None
        what = f"The server should be able to listen on {host}:{port}. The system says: {error.strerror}."
        raise ListenError(
            f"{what} Set `server.host` and `{setting}` to an address of this machine."
        ) from None


def in_use(host: str, port: int, setting: str = "server.port") -> str:
    todo = f"Stop that process, or set `{setting}` to another port (0 takes any free one)."
    return f"The server should have {host}:{port} for itself. Another process listens there. {todo}"
