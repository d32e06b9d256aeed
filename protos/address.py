"""Where a server is: `host:port`."""

from __future__ import annotations

import ipaddress


def split(address: str) -> tuple[str, int] | None:
    """Host and port, or None when it is not HOST:PORT. An IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit()):
        return None
    return (bare, int(port)) if int(port) <= 65535 else None


def loopback(host: str) -> bool:
    """Whether only this machine can be at the other end."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
