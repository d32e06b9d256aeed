"""Flow control and keepalive of gRPC connections: the options that both ends set alike.

gRPC lets the other end send 64 KB ahead of its reader, and megabytes once it takes a connection for a fast
one. At 1 kB a second those 64 KB take a minute in which neither an answer nor a keepalive arrives, and
fifteen uploads that wait for their turn hold fifteen times as much. So little is sent ahead, and a whole
message once somebody reads it. A connection with a long round trip carries one message in each, which is
why messages are large where the connection is fast.
"""

from __future__ import annotations

from typing import Final

LOOKAHEAD: Final = 8 << 10
"""Bytes that may be sent before a reader asks for them."""
SMALL_MODEL_LOOKAHEAD: Final = 64 << 10
"""The same at a worker whose model comes in one message: all of it, without a pause to be asked."""
MANIFEST: Final = 1 << 10
"""Bytes of a message besides the payload in it, with those that frame it."""


def inline_lookahead(payload: int) -> int:
    """The same at a server to which so many bytes come in one message; where they do not, 0."""
    return min(max(LOOKAHEAD, payload + MANIFEST), SMALL_MODEL_LOOKAHEAD)


def windows(lookahead: int = LOOKAHEAD) -> tuple[tuple[str, int], ...]:
    """Flow control of a connection on which so many bytes may be sent before a reader asks for them."""
    return ("grpc.http2.lookahead_bytes", lookahead), ("grpc.http2.bdp_probe", 0)


KEEPALIVE: Final = (
    # Routers that translate addresses may forget a connection that is silent for 8 s.
    ("grpc.keepalive_time_ms", 5_000),
    # Also how long the kernel waits for a peer that takes nothing (TCP_USER_TIMEOUT). The 12 KB that may be
    # on their way take 12 s at 1 kB a second.
    ("grpc.keepalive_timeout_ms", 20_000),
    # A minute by default, for which a process that is stopped, or one behind a proxy, would seem to live.
    ("grpc.http2.ping_timeout_ms", 20_000),
)
"""A connection that is dead is known to be after 25 s, and one that is idle is kept alive on its way."""
