"""The way to a server: its name, proxies, addresses, answer, clock and release, and the way of payloads."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc

from varangian import __version__
from varangian.cli.commands.doctor.finding import Finding, fail, note, passed, within
from varangian.cli.commands.health import diagnose_call, reason, status
from varangian.pki.x509 import LEEWAY
from varangian.protos import ps_pb2
from varangian.protos.data_channel.encrypted_stream import why_unavailable
from varangian.protos.identity.bundle import NO_CHECK_TIME, Bundle, ssl_contexts
from varangian.protos.identity.credentials import CLEAR_TEXT
from varangian.protos.messages import PROTOCOL
from varangian.protos.network.address import AddressError, is_loopback, join_host_port, parse_address
from varangian.protos.network.dial import PROXY, find_exemption, find_proxy, ignored_proxy_variables
from varangian.protos.text import quote

ENCRYPTION = "AES256_GCM_HKDF (streaming AEAD)"
FAR = ". Beyond a local network the advice is `server.data_port: null`: then TLS protects payloads, too"
MEANWHILE = "Payloads will travel over gRPC, which is slower."
MANY = 8
"""Addresses of a name that are tried."""
SAME, DIFFERENT = 2.0, LEEWAY.total_seconds()
"""Seconds between two clocks: up to which they are the same, and from which certificates suffer."""
PASSWORD = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)


def check_server(server: str, bundle: Bundle | None, timeout: float) -> Iterator[Finding]:
    """The checks in order; what builds on one that failed is left out."""
    try:
        host, port = parse_address(server)
    except AddressError as error:
        yield fail("address", f"--server {error}")
        return
    through = find_proxy(server)
    yield from check_proxies(server, host, through, timeout)
    addresses = list[str]()
    try:
        addresses = within(max(timeout, 1.0), lambda: _addresses(host, port))
    except (OSError, UnicodeError) as error:
        rule = f"{quote(host)} should be known here. The system says: {_said(error)}."
        if not through:
            yield fail(
                "address", rule, "Is the name spelled right? /etc/hosts or a name server has to know it."
            )
            return
        yield note("address", f"{rule} The proxy has to know it.")
    else:
        yield passed("address", f"{host} is {', '.join(addresses[:MANY])}")
        if not through:
            yield from check_addresses(addresses[:MANY], port, timeout)
    try:
        reply = status(server, timeout, bundle)
    except grpc.RpcError as error:
        if through:
            yield fail("server", f"no answer through the proxy. gRPC says: {reason(error)}")
            return
        yield fail("server", diagnose_call(error, server, bundle).sentence)
        if bundle is not None:
            yield from check_dates((host, port), bundle, timeout)
        return
    safe = "with TLS" if bundle else "without TLS"
    there = f"{reply.present} of {reply.workers} workers are connected"
    state = (
        f"the run has finished, {reply.rounds} rounds"
        if reply.finished
        else f"round {reply.round} of {reply.rounds}"
    )
    yield passed("server", f"answers {safe}: {state}, {there}")
    for sentence in reply.warnings.splitlines():
        yield note("server", f"it says: {quote(sentence, 500)}")
    yield from check_skew(reply.now, time.time(), secure=bundle is not None)
    yield check_release(reply)
    yield check_payloads(host, addresses, reply.data_port, bundle, timeout)
    if bundle is None and not is_loopback(host):
        rule = f"the connection should be encrypted beyond this machine: {CLEAR_TEXT}"
        yield fail("encryption", rule, "Add --certs DIR at both ends.")


def check_proxies(server: str, host: str, through: str | None, timeout: float) -> Iterator[Finding]:
    """Which variables name a proxy, what is made of them, and whether the proxy answers."""
    ignored, exempt = ignored_proxy_variables(), find_exemption(host)
    asked = os.environ.get(PROXY)
    if through:
        yield check_proxy(through, timeout)
    elif asked and exempt and not is_loopback(host):
        yield note(
            "proxy",
            f"{PROXY}={hidden(asked)} has no effect: {exempt} says that {host} is called directly",
            f"If only the proxy leads there, take {host} out of that variable.",
        )
    elif ignored:
        yield note("proxy", _ignored(ignored, is_loopback(host)))


def check_proxy(proxy: str, timeout: float) -> Finding:
    """Whether the proxy that calls go through takes connections."""
    shown = hidden(proxy)
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        where = parts.hostname or "", parts.port or 80
        socket.create_connection(where, timeout).close()
    except (OSError, ValueError) as error:
        return fail(
            "proxy",
            f"calls go through {shown}, as {PROXY} says, and it does not answer: {_said(error)}.",
            f"Correct {PROXY}, as http://proxy.example:3128, or unset it if the server is reached without.",
        )
    return passed("proxy", f"calls go through {shown}, as {PROXY} says, and it takes connections")


def hidden(url: str) -> str:
    """A URL without the name and the password in it."""
    return PASSWORD.sub(r"\1...@", url)


def _ignored(variables: Mapping[str, str], here: bool) -> str:
    named = ", ".join(f"{name}={hidden(value)}" for name, value in variables.items())
    if here:
        return f"{named} has no effect: no call to this machine goes through a proxy."
    return f"{named} has no effect on Varangian. If only a proxy leads to the server, set {PROXY} to it."


def check_addresses(addresses: Sequence[str], port: int, timeout: float) -> Iterator[Finding]:
    """Which addresses of the name take connections, where it has both of IPv4 and IPv6, or several."""
    if len(addresses) < 2:
        return
    with ThreadPoolExecutor(len(addresses)) as pool:
        answers = dict(
            zip(addresses, pool.map(lambda one: _answer(one, port, timeout), addresses), strict=True)
        )
    if "" not in answers.values():
        return  # none of them: the call will say why
    found = ", ".join(
        f"{join_host_port(address, port)} {said or 'takes connections'}"
        for address, said in answers.items()
    )
    silent = [address for address, said in answers.items() if said.startswith("does not answer")]
    if silent:
        kind = " and ".join(
            sorted({f"IPv{ipaddress.ip_address(one.partition('%')[0]).version}" for one in silent})
        )
        yield note(
            "addresses",
            found,
            f"A connection may wait for {kind} first. Let the server listen there (server.host='*'), take "
            "the address out of the name's record, or give workers an address in the place of the name.",
        )
    else:
        yield passed("addresses", found)


def _answer(address: str, port: int, timeout: float) -> str:
    """Why an address takes no connection; empty if it does."""
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return "refuses, which costs no time"
    except TimeoutError:
        return f"does not answer within {timeout:g} s"
    except (OSError, OverflowError) as error:
        return f"cannot be reached ({_said(error)})"
    return ""


def check_dates(where: tuple[str, int], bundle: Bundle, timeout: float) -> Iterator[Finding]:
    """Both dates of the server's certificate and the clock here, where one of them is the reason."""
    client = ssl_contexts(bundle.path)[1]
    client.verify_mode = ssl.CERT_REQUIRED
    client.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    try:
        with (
            socket.create_connection(where, timeout) as connection,
            client.wrap_socket(connection, server_hostname=where[0]) as secured,
        ):
            stated = secured.getpeercert() or {}
        begins, ends = (ssl.cert_time_to_seconds(str(stated[name])) for name in ("notBefore", "notAfter"))
    except (OSError, ValueError, KeyError):
        return
    now = time.time()
    if begins <= now <= ends:
        return
    yield fail(
        "clock",
        f"the server's certificate is valid from {_date(begins)} to {_date(ends)}, and the clock here "
        f"shows {_date(now)}.",
        "If the clock is right, issue the certificate again; if not, set the clock.",
    )


def check_skew(theirs: int, ours: float, *, secure: bool) -> Iterator[Finding]:
    """The clock here against that of the server.

    Args:
        theirs: milliseconds since 1970; 0 where the server does not say, as those of earlier releases.
        ours: seconds since 1970.
        secure: whether there are certificates, whose dates depend on clocks.
    """
    if not theirs:
        return
    ahead = ours - theirs / 1000
    apart = f"{duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of the server"
    if abs(ahead) <= SAME:
        yield passed("skew", f"the clock is that of the server, within {SAME:g} s")
    elif not secure or abs(ahead) <= DIFFERENT:
        yield note(
            "skew", f"the clock is {apart}", "Times in logs differ by as much. Let NTP set both clocks."
        )
    else:
        much = duration(abs(ahead))
        early, late = f"run out {much} earlier", f"that are new count {much} later"
        means = f"certificates {early if ahead > 0 else late} here than there"
        yield fail("skew", f"the clock is {apart}: {means}", "Let NTP set both clocks.")


def duration(seconds: float) -> str:
    """A time in its largest unit."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def check_release(reply: ps_pb2.StatusReply) -> Finding:
    theirs = reply.software.removeprefix("varangian ")
    if theirs == __version__ and reply.protocol in (0, PROTOCOL):
        return passed("release", f"both ends are {__version__}")
    found = (
        f"Here {__version__} (protocol {PROTOCOL}), there {quote(theirs, 40)} (protocol {reply.protocol})."
    )
    return fail("release", f"both ends should be one release. {found}", "Install the same at both ends.")


def check_payloads(
    host: str, addresses: Sequence[str], port: int, bundle: Bundle | None, timeout: float
) -> Finding:
    """The way of payloads from here, and their protection."""
    if not port:
        how = "under TLS 1.3 like every call" if bundle else "in clear text"
        return passed("payloads", f"over gRPC, as the server has no data port, {how}")
    try:
        socket.create_connection((host, port), timeout).close()
    except (OSError, OverflowError) as error:
        found = f"The data port {port} of {host} should be reachable from here. The system says: {error}."
        return note("payloads", f"{found} {MEANWHILE}", "`server.data_port` can fix the number.")
    if bundle and (lacking := why_unavailable()):
        found = f"It should be possible to encrypt what travels beside gRPC, and {lacking}."
        return note("payloads", f"{found} {MEANWHILE}")
    if bundle is None:
        return passed("payloads", f"beside gRPC, over port {port}, in clear text")
    found = f"beside gRPC, over port {port}, encrypted by {ENCRYPTION} with keys that come over TLS 1.3"
    far = any(ipaddress.ip_address(address).is_global for address in addresses)
    return passed("payloads", f"{found}{FAR if far else ''}")


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _date(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(seconds))} UTC"


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
