"""Addresses of servers, parsed: `host:port`, or a host alone."""

from __future__ import annotations

import ipaddress
import re

LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")
"""One part of a host name. Container names have underscores, although host names should not."""
HOST = "should be a host name or an IP address"
EVERYWHERE = "*"
"""The host that stands for every address of the machine."""


class AddressError(ValueError):
    """Not an address: what it should be, what was found, and what was probably meant."""

    def __init__(self, rule: str, found: str, hint: str = "") -> None:
        self.rule, self.found, self.hint = rule, found, hint
        super().__init__(f"{rule}. Found {found!r:.200}. {hint}".rstrip())


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port, or None when `address` is not HOST:PORT."""
    try:
        return parse_address(address)
    except AddressError:
        return None


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`. An IPv6 address stands in brackets.

    Raises:
        AddressError: it is something else.
    """
    _check_bare(address, "should be HOST:PORT")
    name, colon, port = address.rpartition(":")
    if not name or (":" in name and not name.startswith("[")):
        meant = f"[{address}]:50051" if ":" in address else f"{address}:50051"
        hint = "" if not address or (colon and not name) else f"Did you mean {meant}?"
        raise AddressError("should be HOST:PORT", address, hint)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError("should be HOST:PORT, with a port from 0 to 65535", address)
    return normalise_host(name), int(port)


def normalise_host(name: str) -> str:
    """A host as name servers and certificates spell it: letters beyond ASCII as IDNA, no final dot.

    Raises:
        AddressError: it is neither a host name nor an IP address.
    """
    _check_bare(name, HOST)
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    head, colon, tail = name.rpartition(":")
    if colon and tail.isdigit() and ":" not in head and head:
        raise AddressError(HOST, name, f"Leave the port out: {head}")
    try:
        ascii_name = name.removesuffix(".").encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise AddressError(
            HOST, name, f"IDNA, which name servers use, has no form of it: {error}"
        ) from None
    labels = ascii_name.split(".")
    if not all(LABEL.fullmatch(label) for label in labels) or len(ascii_name) > 253:
        raise AddressError(HOST, name)
    if labels[-1].isdigit():
        raise AddressError(HOST, name, "What ends in a number is an IPv4 address, and this is none.")
    return ascii_name


def parse_certificate_host(name: str) -> str:
    """A host for a certificate: as `normalise_host`, or with `*.` for every name directly below a domain.

    Raises:
        AddressError: it is none of these.
    """
    below = name.removeprefix("*.")
    found = normalise_host(below)
    if below == name:
        return found
    if "." not in found or ":" in found or found.rpartition(".")[2].isdigit():
        raise AddressError("should have a domain after `*.`, as *.example.org", name)
    return f"*.{found}"


def parse_listen_host(name: str) -> str:
    """A host to listen on: as `normalise_host`, or `*` for every address of the machine.

    Raises:
        AddressError: it is neither.
    """
    return EVERYWHERE if name == EVERYWHERE else normalise_host(name)


def join_host_port(name: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def is_loopback(name: str) -> bool:
    """Whether only this machine can be at the other end."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_bare(text: str, rule: str) -> None:
    """Refuse what was copied from a browser."""
    scheme, separator, rest = text.partition("://")
    bare = (rest if separator else scheme).partition("/")[0]
    if bare != text:
        hint = f"Did you mean {bare}?" if bare else ""
        raise AddressError(f"{rule}, without a scheme or a path", text, hint)
