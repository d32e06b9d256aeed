"""gRPC channels: every channel of the project is opened here, so that all of them have the same options."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from typing import TypeAlias

import grpc
import grpc.aio

from varangian.protos.network.address import is_loopback, join_host_port, split_address

PROXY = "VARANGIAN_PROXY"
"""The environment variable that names a proxy for servers beyond this machine."""
IGNORED = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables that gRPC obeys by default, also for calls that never leave the machine."""
EXEMPTS = ("no_grpc_proxy", "no_proxy")
"""Environment variables with hosts that gRPC calls directly, whatever the proxy; the first counts."""

Options: TypeAlias = Iterable[tuple[str, int | str]]


def open_channel(
    server: str, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.Channel:
    """A channel to `host:port`, over TLS when there are credentials."""
    target, all_options = _target(server), _options(server, options)
    if credentials is None:
        return grpc.insecure_channel(target, all_options)
    return grpc.secure_channel(target, credentials, all_options)


def open_aio_channel(
    server: str, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.aio.Channel:
    """A channel of asyncio to `host:port`, over TLS when there are credentials."""
    target, all_options = _target(server), _options(server, options)
    if credentials is None:
        return grpc.aio.insecure_channel(target, all_options)
    return grpc.aio.secure_channel(target, credentials, all_options)


def find_proxy(server: str) -> str | None:
    """The proxy between here and a server, if one was asked for."""
    found = split_address(server)
    if found is None or is_loopback(found[0]) or find_exemption(found[0]):
        return None
    return os.environ.get(PROXY) or None


def find_exemption(host: str) -> str | None:
    """The variable by which gRPC calls a host directly, and its entry: `no_proxy=.example`."""
    name = next((name for name in EXEMPTS if name in os.environ), None)
    entries = os.environ[name].split(",") if name is not None else ()
    return next((f"{name}={entry}" for entry in entries if entry.strip() and _covers(entry, host)), None)


def _covers(entry: str, host: str) -> bool:
    """Whether an entry is the end of a host name, or a network with an address in it."""
    if host.lower().endswith(entry.strip().lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        return False


def ignored_proxy_variables() -> dict[str, str]:
    """The proxy variables that are set here and have no effect."""
    names = (spelling for name in IGNORED for spelling in (name, name.upper()))
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _options(server: str, more: Options) -> list[tuple[str, int | str]]:
    through = find_proxy(server)
    if through is None:
        return [("grpc.enable_http_proxy", 0), *more]
    return [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", through), *more]


def _target(server: str) -> str:
    """The address in normal form; anything else is left for the diagnosis to explain."""
    found = split_address(server)
    return server if found is None else join_host_port(*found)
