"""Connection limits of the gRPC port: the newest few of each caller, and some without a caller.

gRPC closes what is beyond the limit of the port before any handshake, but has no limit for one caller,
and no call that closes a connection. So the surplus of a caller is found among the sockets of this process
and shut down, which gRPC takes for a connection that has ended.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import stat
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import unquote

from varangian.protos.network.descriptors import connections
from varangian.protos.refusals import Refusal
from varangian.structured_logs import event

log = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, int]
"""Host and port of the other end."""

FOLDER = "/dev/fd"
"""The folder in which the system lists the open files of a process."""
PERIOD = 5.0
"""Seconds between two checks without a reason: only these find connections that never call."""
SHORTEST_PERIOD = 0.2
"""Seconds between two checks at least."""
PEERS = 1024
"""Connections whose other end is not parsed again at each call."""
NEW = 1.0
"""Seconds for which a connection without a call is left alone, however many there are."""


@dataclass(frozen=True)
class ConnectionShare:
    """Connections that one caller may keep."""

    worker: int = 4
    """Of a certificate, or a name with a token: one is in use, others may be dead unnoticed."""
    address: int = 8
    """Of an address whose callers prove no identity, as they need not for the status without TLS."""


CONNECTION_SHARE = ConnectionShare()


@dataclass
class Caller:
    """The caller on a connection."""

    who: str
    proven: bool
    last_call: float
    """Time of its last call, on the clock of the limits."""


class ConnectionLimits:
    """Counts the connections of each caller, and closes the surplus.

    Args:
        workers: of the run.
        on_close: called for each connection that is closed.
        share: how many each caller may keep.
        clock: seconds from any start.
    """

    def __init__(
        self,
        workers: int,
        on_close: Callable[[Refusal], None],
        share: ConnectionShare = CONNECTION_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = connections(workers)
        self._on_close = on_close
        self._share = share
        self._clock = clock
        self._callers: dict[Address, Caller] = {}
        self._first_seen: dict[Address, float] = {}
        self._unwanted = set[Address]()
        self._due = asyncio.Event()
        self._logged = set[str]()

    def note_call(self, peer: str, who: str, proven: bool) -> None:
        """Note a call from the other end that gRPC calls `peer`."""
        address = parse_peer(peer)
        if address is None:
            return
        known = self._callers.get(address)
        if known is None:
            self._due.set()
        self._callers[address] = Caller(who, proven or (known is not None and known.proven), self._clock())

    def drop(self, peer: str) -> None:
        """Close a connection soon: its caller goes on calling although it is refused."""
        if (address := parse_peer(peer)) is not None:
            self._unwanted.add(address)
            self._due.set()

    def find_surplus(self, there: Iterable[Address]) -> dict[Address, str]:
        """The connections to close, of those that there are, and the caller of each."""
        now, there = self._clock(), set(there)
        self._callers = {address: caller for address, caller in self._callers.items() if address in there}
        self._first_seen = {address: self._first_seen.get(address, now) for address in there}
        found = {address: self._name(address) for address in self._unwanted & there}
        self._unwanted.clear()
        of_caller: dict[str, list[Address]] = defaultdict(list)
        for address, caller in self._callers.items():
            of_caller[caller.who].append(address)
        for who, addresses in of_caller.items():
            proven = self._callers[addresses[0]].proven
            most = self._share.worker if proven else self._share.address
            newest = sorted(addresses, key=lambda address: self._callers[address].last_call, reverse=True)
            found |= dict.fromkeys(newest[most:], who)
        if len(there) > self.most * 3 // 4:
            found |= self._excess_unproven(there - found.keys(), now)
        return found

    def _excess_unproven(self, there: set[Address], now: float) -> dict[Address, str]:
        """Connections without a proven caller beyond a quarter of all: the oldest of the fullest host."""
        of_host: dict[str, list[Address]] = defaultdict(list)
        unproven = [address for address in there if not self._proven(address)]
        for address in unproven:
            if now - self._first_seen[address] >= NEW:
                of_host[address[0]].append(address)
        for addresses in of_host.values():
            addresses.sort(key=lambda address: self._first_seen[address], reverse=True)
        found: dict[Address, str] = {}
        for _ in range(len(unproven) - self.most // 4):
            fullest = max(of_host.values(), key=len, default=[])
            if not fullest:
                break
            address = fullest.pop()
            found[address] = self._name(address)
        return found

    def _proven(self, address: Address) -> bool:
        caller = self._callers.get(address)
        return caller is not None and caller.proven

    def _name(self, address: Address) -> str:
        caller = self._callers.get(address)
        return caller.who if caller else f"{address[0]} (no call yet)"

    @asynccontextmanager
    async def enforce(self, port: int) -> AsyncGenerator[None]:
        """Close surplus connections to this port of this machine in this context."""
        task = asyncio.create_task(self._check_repeatedly(port))
        try:
            yield
        finally:
            task.cancel()

    async def _check_repeatedly(self, port: int) -> None:
        while True:
            await asyncio.sleep(SHORTEST_PERIOD)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), PERIOD)
            self._due.clear()
            if await self.close_surplus(port):
                # Those who were closed come back.
                self._due.set()

    async def close_surplus(self, port: int) -> bool:
        """Check once; returns whether to check again soon."""
        there = await asyncio.to_thread(list_connections, port)
        closing = self.find_surplus(there)
        if closing:
            await asyncio.to_thread(shut_down, port, closing)
        for who in closing.values():
            self._on_close(Refusal.CONNECTIONS)
            if who not in self._logged and len(self._logged) < self.most:
                self._logged.add(who)
                log.warning(
                    "closed a connection of %.70s: too many connections, or too many calls",
                    who,
                    extra=event("connection_closed", caller=who),
                )
        return bool(closing) or len(there) > self.most // 2


@lru_cache(PEERS)
def parse_peer(peer: str) -> Address | None:
    """Host and port of what gRPC calls the other end, as `ipv4:192.0.2.1:5678` or `ipv6:%5B::1%5D:5678`."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return normalise_address(host.strip("[]")), int(port)


def normalise_address(host: str) -> str:
    """An address in normal form; that of IPv4 also where it came over IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def list_connections(port: int) -> list[Address]:
    """The other ends of all connections to a port of this process."""
    return [address for address, _ in _scan(port, ())]


def shut_down(port: int, addresses: Iterable[Address]) -> None:
    """End the connections to these other ends, in both directions."""
    for _ in _scan(port, set(addresses)):
        pass


def _scan(port: int, unwanted: Iterable[Address]) -> list[tuple[Address, bool]]:
    """Every connection to a port, and whether it was shut down.

    A descriptor is copied before it is looked at: its number may be another file's a moment later.
    """
    found: list[tuple[Address, bool]] = []
    try:
        names = os.listdir(FOLDER)
    except OSError:
        return found
    for name in names:
        with suppress(OSError, ValueError):
            number = int(name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with _copied(number) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if connection.getsockname()[1] != port:
                    continue
                host, its_port, *_ = connection.getpeername()
                address = normalise_address(host), int(its_port)
                if ended := address in unwanted:
                    connection.shutdown(socket.SHUT_RDWR)
                found.append((address, ended))
    return found


def _copied(number: int) -> socket.socket:
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
