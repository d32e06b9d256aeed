"""How much may be on its way: both ends set the same limits on their connections.

gRPC lets the other end send 64 KB ahead of its reader, and megabytes once it takes a line for a fast one.
At 1 kB a second those 64 KB are a minute in which nothing that is said arrives: no answer, no sign of life.
And fifteen uploads that wait for their turn hold fifteen times as much as is sent ahead. So little is sent
ahead, and then a whole message at a time, once somebody reads it. Lines with long round trips carry one
message for each of them, which is why messages are large where the line is fast.
"""

from __future__ import annotations

from typing import Final

AHEAD: Final = 8 << 10
"""Bytes before a reader asks for them."""
WINDOWS: Final = (
    ("grpc.http2.lookahead_bytes", AHEAD),
    ("grpc.http2.bdp_probe", 0),
)
SIGNS_OF_LIFE: Final = (
    # Routers that translate addresses may forget a connection that is silent for 8 s.
    ("grpc.keepalive_time_ms", 5_000),
    # Also how long the kernel waits for a peer that takes nothing (TCP_USER_TIMEOUT). The 12 KB that may be
    # on their way take 12 s on a line of 1 kB a second.
    ("grpc.keepalive_timeout_ms", 20_000),
    # A minute by default, for which a process that is stopped, or one behind a proxy, would seem to live.
    ("grpc.http2.ping_timeout_ms", 20_000),
)
"""A connection that is dead is known to be after 25 s, and one that is idle is kept alive on its way."""
