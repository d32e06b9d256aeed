"""Ports that a test names before anything listens there, or after something did."""

import atexit
import random
import socket
import sys
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Of the ports that the system hands out: to whoever asks for any, and to each connection."""
MANY = 12_000


def _candidates() -> list[int]:
    lowest = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32768
    return random.SystemRandom().sample(range(max(1024, lowest - MANY), lowest), k=min(MANY, lowest - 1024))


def free_port() -> int:
    """A port that nobody has, that the system hands out to nobody, and that no other test session is given.

    One that the system has handed out is another's as soon as nothing listens at it.
    """
    for number in _candidates():
        claim = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":  # a name that is gone with this process
                claim.bind(f"\0varangian-test-port-{number}")
            with socket.socket() as probe:
                probe.bind(("", number))
        except OSError:
            claim.close()
            continue
        atexit.register(claim.close)
        return number
    raise OSError(f"no free port below those of {RANGE}")
