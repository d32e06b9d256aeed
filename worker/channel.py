"""A worker's channel to the server, and the calls on it, in bytes: parsing is ours."""

from __future__ import annotations

import socket
from typing import Any

import grpc
import grpc.aio

from varangian.protos import codec, ps_pb2
from varangian.protos.address import split
from varangian.protos.flow import SIGNS_OF_LIFE, WINDOWS

SERVICE = ps_pb2.DESCRIPTOR.services_by_name["ParameterServer"].full_name

OPTIONS = (
    ("grpc.max_receive_message_length", codec.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", codec.MESSAGE_LIMIT),
    # Tries are counted and explained here; gRPC would repeat calls in silence.
    ("grpc.enable_retries", 0),
    # A connection is an identity: two workers of one process must not share it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    *WINDOWS,
    *SIGNS_OF_LIFE,
)


def connect(server: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(server, options=OPTIONS)
    return grpc.aio.secure_channel(server, credentials, options=OPTIONS)


class Stub:
    """The calls of a worker. No message object ever holds a payload."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # What gRPC's types do not know is that bytes go through as they are.
        self.join: Any = channel.unary_unary(f"/{SERVICE}/Join")
        self.pull: Any = channel.unary_stream(f"/{SERVICE}/Pull")
        self.push: Any = channel.stream_unary(f"/{SERVICE}/Push")


def described(server: str, secure: bool) -> str:
    """What `host:port` stands for just now, and how it is spoken to. May block for seconds."""
    how = "over TLS" if secure else "in clear text"
    where = split(server)
    if where is None:
        return f"{server} is no HOST:PORT."
    try:
        found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"The name {where[0]!r:.100} stands for no address here ({error.strerror})."
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return f"It was called {how} at {', '.join(addresses)}, port {where[1]}."
