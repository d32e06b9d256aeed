"""`varangian doctor`: check versions, certificates and the way to a server before a program is started."""

from __future__ import annotations

import argparse
import ipaddress
import platform
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import grpc

from varangian import __version__
from varangian.cli.commands.health import bundle_for, diagnose_call, status
from varangian.cli.credentials import CLEAR_TEXT, read_choice
from varangian.cli.main import FAILED, OK
from varangian.pki.authority import HOME, SERVER
from varangian.protos.data_channel.encrypted_stream import why_unavailable
from varangian.protos.identity.bundle import KEY, REVOKED, Bundle, BundleError
from varangian.protos.identity.revocation import fingerprint, parse_fingerprints
from varangian.protos.network import descriptors
from varangian.protos.network.address import AddressError, is_loopback, parse_address
from varangian.protos.network.dial import PROXY, find_proxy, ignored_proxy_variables
from varangian.protos.text import quote

PACKAGES = ("torch", "grpcio", "protobuf")
SOON = 3.0
"""Days before the end from which a certificate should be renewed."""
DAY = 86400.0
LISTS = (REVOKED, f"../{SERVER}/{REVOKED}", f"../{HOME}/{REVOKED}")
"""Places of lists of revoked certificates, relative to a bundle."""
ENCRYPTION = "AES256_GCM_HKDF (streaming AEAD)"
FAR = ". Beyond a local network the advice is `server.data_port: null`: then TLS protects payloads, too"
FEW = 10
"""Workers of a server that should be possible everywhere."""
RAISE = "Raise the limit with `ulimit -n` in the shell that starts it"
MEANWHILE = "Payloads will travel over gRPC, which is slower."


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    passed: bool
    sentence: str
    vital: bool = True
    """Whether a run needs it."""

    def __str__(self) -> str:
        mark = "PASSED" if self.passed else "FAIL" if self.vital else "NOTE"
        return f"{mark:<6}  {self.what:<12}  {self.sentence}"


def command(args: argparse.Namespace) -> int:
    """Print a line for each check; 0 when all have passed that a run needs."""
    passed = True
    for finding in examine(args.server, read_choice(args).certs, args.timeout):
        print(finding, flush=True)
        passed &= finding.passed or not finding.vital
    return OK if passed else FAILED


def examine(server: str | None, certs: Path | None, timeout: float) -> Iterator[Finding]:
    """The checks in order; what builds on one that failed is left out."""
    yield _versions()
    yield _files()
    yield Finding("clock", True, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    try:
        bundle = bundle_for(certs)
    except BundleError as error:
        yield Finding("certificate", False, str(error))
        return
    if bundle is not None:
        for check in CERTIFICATE:
            yield check(bundle)
    if server is not None:
        yield from _check_server(server, bundle, timeout)


def _versions() -> Finding:
    found = [f"varangian {__version__}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("versions", False, f"{name} should be installed. Install varangian again.")
    return Finding("versions", True, ", ".join(found))


def _files() -> Finding:
    """The limit of open files, and the number of workers of a server for which it is enough."""
    limit = descriptors.limit()
    workers = descriptors.most_workers(limit)
    found = f"{limit} may be open, enough for a server with {workers} workers"
    return Finding("files", workers >= FEW, found if workers >= FEW else f"{found}. {RAISE}", vital=False)


def _identity(bundle: Bundle) -> Finding:
    hosts = f" for {', '.join(bundle.hosts)}" if bundle.hosts else ""
    who = f"the {bundle.role.value} {bundle.name}{hosts}, of cluster {bundle.cluster}"
    return Finding("certificate", True, f"{bundle.path}: {who}")


def _expiry(bundle: Bundle) -> Finding:
    days = (bundle.ends - time.time()) / DAY
    fix = " Renew it with `varangian certs issue --force`." if days < SOON else ""
    return Finding("expiry", days >= SOON, f"in {days:.1f} days.{fix}")


def _secrecy(bundle: Bundle) -> Finding:
    key = bundle.path / KEY
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        found = f"{key} should be readable by its owner only. Found mode {mode:o}; chmod 600 {key}."
        return Finding("key", False, found)
    return Finding("key", True, f"readable by its owner only, mode {mode:o}")


def _standing(bundle: Bundle) -> Finding:
    """Whether a list of revoked certificates that lies here has this one on it."""
    mark, read = fingerprint(bundle.certificate), list[str]()
    for path in dict.fromkeys(bundle.path / place for place in LISTS):
        try:
            listed = mark in parse_fingerprints(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return Finding("revocation", False, f"{path} should be a list of revoked certificates: {error}")
        if listed:
            fix = f"Issue it again: varangian certs issue DIR {bundle.name} --force."
            return Finding("revocation", False, f"{path} says that this certificate is revoked. {fix}")
        read.append(str(path))
    found = f"not on {' or '.join(read)}" if read else "no list of revoked certificates lies here"
    return Finding("revocation", True, found)


CERTIFICATE: tuple[Callable[[Bundle], Finding], ...] = (_identity, _expiry, _standing, _secrecy)


def _check_server(server: str, bundle: Bundle | None, timeout: float) -> Iterator[Finding]:
    try:
        where = parse_address(server)
    except AddressError as error:
        yield Finding("address", False, f"--server {error}")
        return
    if variables := ignored_proxy_variables():
        yield Finding("proxy", find_proxy(server) is not None, _proxies(server, variables), vital=False)
    try:
        addresses = sorted(
            {str(entry[4][0]) for entry in socket.getaddrinfo(*where, type=socket.SOCK_STREAM)}
        )
    except OSError as error:
        yield Finding("address", False, f"{where[0]!r} should be known here. The system says: {error}.")
        return
    yield Finding("address", True, f"{where[0]} is {', '.join(addresses)}")
    try:
        reply = status(server, timeout, bundle)
    except grpc.RpcError as error:
        yield Finding("server", False, diagnose_call(error, server, bundle).sentence)
        return
    safe = "with TLS" if bundle else "without TLS"
    yield Finding("server", True, f"answers {safe}: round {reply.round} of {reply.rounds}")
    yield _same_release(reply.software)
    yield _payloads(where[0], addresses, reply.data_port, bundle, timeout)
    if bundle is None and not is_loopback(where[0]):
        rule = f"the connection should be encrypted beyond this machine: {CLEAR_TEXT}."
        yield Finding("encryption", False, f"{rule} Add --certs DIR at both ends.")


def _proxies(server: str, variables: Mapping[str, str]) -> str:
    """Which variables name a proxy, and what is made of them."""
    named = ", ".join(f"{name}={value}" for name, value in variables.items())
    if through := find_proxy(server):
        return f"calls go through {through}, as {PROXY} says"
    if is_loopback(parse_address(server)[0]):
        return f"{named} has no effect: no call to this machine goes through a proxy."
    return f"{named} has no effect on Varangian. If only a proxy leads to the server, set {PROXY} to it."


def _payloads(host: str, addresses: list[str], port: int, bundle: Bundle | None, timeout: float) -> Finding:
    """The way of payloads from here, and their protection."""
    if not port:
        how = "under TLS 1.3 like every call" if bundle else "in clear text"
        return Finding("payloads", True, f"over gRPC, as the server has no data port, {how}")
    try:
        socket.create_connection((host, port), timeout).close()
    except (OSError, OverflowError) as error:
        found = f"The data port {port} of {host} should be reachable from here. The system says: {error}."
        fix = "`server.data_port` can fix the number."
        return Finding("payloads", False, f"{found} {MEANWHILE} {fix}", vital=False)
    if bundle and (lacking := why_unavailable()):
        found = f"It should be possible to encrypt what travels beside gRPC, and {lacking}."
        return Finding("payloads", False, f"{found} {MEANWHILE}", vital=False)
    if bundle is None:
        return Finding("payloads", True, f"beside gRPC, over port {port}, in clear text")
    found = f"beside gRPC, over port {port}, encrypted by {ENCRYPTION} with keys that come over TLS 1.3"
    far = any(ipaddress.ip_address(address).is_global for address in addresses)
    return Finding("payloads", True, f"{found}{FAR if far else ''}")


def _same_release(software: str) -> Finding:
    theirs = software.removeprefix("varangian ")
    if theirs == __version__:
        return Finding("release", True, f"both ends are {__version__}")
    return Finding(
        "release",
        False,
        f"both ends should be one release. Here {__version__}, there {quote(theirs, 40)}.",
    )
