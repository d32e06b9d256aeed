"""Connection limits of the gRPC port: a few for each caller, the newest ones, and some for strangers.

gRPC closes what is beyond the limit of the port before any handshake, but has no limit for one caller,
and no call that closes a connection. So the surplus of a caller is found among the sockets of this process
and shut down, which gRPC takes for the end of the line.
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
from typing import TypeAlias
from urllib.parse import unquote

from varangian.protos.network.descriptors import connections
from varangian.protos.refusals import Refusal

log = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, int]
"""Host and port of the other end."""

FOLDER = "/dev/fd"
"""Where the system lists the open files of a process."""
PERIOD = 5.0
"""Seconds between two looks where nothing calls for one: connections that never call show only there."""
PAUSE = 0.2
"""Seconds between two looks at least."""
NEW = 1.0
"""Seconds in which a connection that has not called yet is left alone, however many there are."""


@dataclass(frozen=True)
class ConnectionShare:
    """How many connections callers may keep."""

    worker: int = 4
    """For each certificate, or name with a token: one is in use, others may be dead without our knowing."""
    address: int = 8
    """For each address whose callers prove nothing, as they need not for the status without TLS."""


SHARE = ConnectionShare()


@dataclass
class Caller:
    """Who calls on a connection."""

    who: str
    proven: bool
    called: float
    """When it last did."""


class ConnectionLimits:
    """Counts the connections of each caller, and closes those of the surplus.

    Args:
        workers: of the run.
        closed: called for each connection that is closed.
        share: how many each caller may keep.
        clock: seconds from any start.
    """

    def __init__(
        self,
        workers: int,
        closed: Callable[[Refusal], None],
        share: ConnectionShare = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = connections(workers)
        self._closed = closed
        self._share = share
        self._clock = clock
        self._callers: dict[Address, Caller] = {}
        self._first_seen: dict[Address, float] = {}
        self._unwanted = set[Address]()
        self._due = asyncio.Event()
        self._logged = set[str]()

    def called(self, peer: str, who: str, proven: bool) -> None:
        """Somebody calls from the end that gRPC calls `peer`."""
        address = parse_peer(peer)
        if address is None:
            return
        known = self._callers.get(address)
        if known is None:
            self._due.set()
        self._callers[address] = Caller(who, proven or (known is not None and known.proven), self._clock())

    def drop(self, peer: str) -> None:
        """Close this connection soon: its calls are more than refusals can slow down."""
        if (address := parse_peer(peer)) is not None:
            self._unwanted.add(address)
            self._due.set()

    def surplus(self, there: Iterable[Address]) -> dict[Address, str]:
        """Which of the connections that there are to close, and the caller of each."""
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
            newest = sorted(addresses, key=lambda address: self._callers[address].called, reverse=True)
            found |= dict.fromkeys(newest[most:], who)
        if len(there) > self.most * 3 // 4:
            found |= self._crowd(there - found.keys(), now)
        return found

    def _crowd(self, there: set[Address], now: float) -> dict[Address, str]:
        """What strangers have beyond a quarter of the places: the oldest of the fullest address first."""
        of_host: dict[str, list[Address]] = defaultdict(list)
        strangers = [address for address in there if not self._proven(address)]
        for address in strangers:
            if now - self._first_seen[address] >= NEW:
                of_host[address[0]].append(address)
        for addresses in of_host.values():
            addresses.sort(key=lambda address: self._first_seen[address], reverse=True)
        found: dict[Address, str] = {}
        for _ in range(len(strangers) - self.most // 4):
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
    async def watched(self, port: int) -> AsyncGenerator[None]:
        """Close the surplus among the connections to this port of this machine in this context."""
        task = asyncio.create_task(self._watch(port))
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self, port: int) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), PERIOD)
            self._due.clear()
            if await self.close_surplus(port):
                # Those who were closed come back.
                self._due.set()

    async def close_surplus(self, port: int) -> bool:
        """Look once; whether to look again soon."""
        there = await asyncio.to_thread(sockets, port)
        closing = self.surplus(there)
        if closing:
            await asyncio.to_thread(shut_down, port, closing)
        for who in closing.values():
            self._closed(Refusal.CONNECTIONS)
            if who not in self._logged and len(self._logged) < self.most:
                self._logged.add(who)
                log.warning("closed a connection of %.70s, who has too many or calls too often", who)
        return bool(closing) or len(there) > self.most // 2


def parse_peer(peer: str) -> Address | None:
    """Host and port of what gRPC calls the other end, as `ipv4:192.0.2.1:5678` or `ipv6:%5B::1%5D:5678`."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return normal(host.strip("[]")), int(port)


def normal(host: str) -> str:
    """One way to write an address; that of IPv4 also where it came over IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def sockets(port: int) -> list[Address]:
    """The other ends of all connections to a port of this process."""
    return [address for address, _ in _each(port, ())]


def shut_down(port: int, addresses: Iterable[Address]) -> None:
    """End the connections to these other ends, in both directions."""
    for _ in _each(port, set(addresses)):
        pass


def _each(port: int, unwanted: Iterable[Address]) -> list[tuple[Address, bool]]:
    """Every connection to a port, and whether it was ended.

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
                address = normal(host), int(its_port)
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
