"""Listening sockets: one for each address of a host, all with one port, and what to say when that fails."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from varangian.protos.network.address import EVERYWHERE, join_host_port

ATTEMPTS = 20
"""Attempts to find a port that is free on every address of a host."""
NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(OSError):
    """The server cannot listen where it should."""


class PortInUse(ListenError):
    """Another process listens there."""


def bind_sockets(host: str, port: int, setting: str = "server.port") -> list[socket.socket]:
    """Sockets that can listen there: one for every address of the host, all with one port.

    An address that this machine does not have, as that of IPv6 where it is off, is left out if there is
    another one.

    Args:
        host: name or address; `*` for every address of the machine.
        port: 0 for any free one.
        setting: what the port is called in the configuration, for whoever reads an error.

    Raises:
        ListenError: it cannot; PortInUse when another process has the port on any of the addresses.
    """
    name = any_address() if host == EVERYWHERE else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                return _all_bound(addresses, port)
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE or not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(in_use(name, port, setting)) from None
        where = join_host_port(name, port)
        what = f"The server should be able to listen on {where}. The system says: {error.strerror}."
        host_setting = "server.metrics_host" if setting == "server.metrics_port" else "server.host"
        raise ListenError(
            f"{what} Set `{host_setting}` and `{setting}` to an address of this machine."
        ) from None


def any_address() -> str:
    """The address that stands for all of this machine, those of IPv4 and, where there are any, of IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", 0))
    except OSError:
        return "0.0.0.0"
    return "::"


def in_use(host: str, port: int, setting: str = "server.port") -> str:
    """The error sentence for a port that another process has."""
    todo = f"Stop that process, or set `{setting}` to another port (0 takes any free one)."
    address = join_host_port(host, port)
    return f"The server should have {address} for itself. Another process listens there. {todo}"


def _all_bound(addresses: Sequence[tuple[int, Any]], port: int) -> list[socket.socket]:
    """Bind every address to one port. Of several addresses, some may be missing on this machine."""
    found: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                found.append(_bound_to(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in NO_SUCH_ADDRESS:
                    raise
                missing = error
            else:
                port = int(found[-1].getsockname()[1])
        if missing is not None and not found:
            raise missing
    except BaseException:
        for listener in found:
            listener.close()
        raise
    return found


def _bound_to(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Otherwise `::` would leave IPv4 out where the system says so; for other addresses no matter.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
