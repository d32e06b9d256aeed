"""TLS at the worker: what it shows, and what went wrong when a server does not answer.

gRPC reports most of that as `UNAVAILABLE: Socket closed`. So after a failure the handshake is done once
more by the standard library, which says which end was not content with what.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from varangian.protos.identity.bundle import (
    CA,
    CERTIFICATE,
    KEY,
    X509_EXPIRED,
    X509_NOT_YET,
    Bundle,
    BundleError,
    Role,
    find_bundle,
    ssl_contexts,
)
from varangian.protos.identity.watched_files import WatchedFiles
from varangian.protos.network.address import AddressError, parse_address
from varangian.protos.network.descriptors import Spare, exhausted

PATIENCE = 3.0
"""Seconds for each step of a diagnosis."""
BEHIND = "Is the server running, behind what forwards its port?"
SPARE = Spare()
"""One for all workers of a process."""
X509_OTHER_NAME = frozenset({62, 64})
"""Host name and address."""


@dataclass(frozen=True)
class Diagnosis:
    """Why there is no connection."""

    sentence: str = ""
    """Empty when nothing is wrong below the calls."""
    final: bool = False
    """Whether it will still be so in a moment."""


Proof: TypeAlias = str | Bundle
"""What a worker shows: a token, or over TLS its certificate."""


def bundle_of(path: Path, name: str) -> Bundle:
    """What a worker shows: `path` is its bundle, or a directory of bundles.

    Raises:
        BundleError: it cannot be used.
    """
    return Bundle.load(find_bundle(path, name), Role.WORKER)


def watched(bundle: Bundle) -> WatchedFiles[Bundle]:
    """The same bundle, for as long as the one on the disk is the same or no use."""

    def read() -> Bundle:
        found = Bundle.load(bundle.path, Role.WORKER)
        if (found.name, found.cluster) != (bundle.name, bundle.cluster):
            raise BundleError(
                f"{bundle.path / CERTIFICATE} should be the certificate of {bundle.name} in the cluster "
                f"{bundle.cluster}. Found that of {found.name} in {found.cluster}."
            )
        return found

    paths = [bundle.path / name for name in (CA, CERTIFICATE, KEY)]
    return WatchedFiles(paths, read, SPARE, value=bundle)


def differs(bundle: Bundle) -> bool:
    """Whether the files of a bundle are not those that it was read from; also when they cannot be read."""
    try:
        files = [(bundle.path / name).read_bytes() for name in (CA, CERTIFICATE, KEY)]
    except OSError:
        return True
    return files != [bundle.ca, bundle.certificate, bundle.key]


def credentials(bundle: Bundle) -> grpc.ChannelCredentials:
    """For channels to a server of the same authority."""
    return grpc.ssl_channel_credentials(bundle.ca, bundle.key, bundle.certificate)


def diagnosis(server: str, bundle: Bundle | None, patience: float = PATIENCE) -> Diagnosis:
    """Connect to `host:port` as a client with or without TLS does, and say what is wrong. Blocks."""
    try:
        found = parse_address(server)
    except AddressError as error:
        return Diagnosis(f"The address of a server {error}", final=True)
    host = found[0]
    try:
        with socket.create_connection(found, patience) as line:
            return _shaken(line, host, server, bundle)
    except socket.gaierror as error:
        return Diagnosis(f"The name {host!r} should be known here. The system says: {error.strerror}.")
    except ConnectionRefusedError:
        return Diagnosis(f"Nothing listens at {server}. Is the server running, and is this its port?")
    except OSError as error:
        if exhausted(error):
            return Diagnosis(
                "This process can open no more files, and so no connection. Raise the limit with "
                "`ulimit -n` in the shell that starts it, or close what it has open."
            )
        return Diagnosis(f"{server} cannot be reached: {error.strerror or error}.")


def _shaken(line: socket.socket, host: str, server: str, bundle: Bundle | None) -> Diagnosis:
    context = ssl_contexts(None if bundle is None else bundle.path)[1]
    context.set_alpn_protocols(["h2"])
    if bundle is not None:
        context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    try:
        with context.wrap_socket(line, server_hostname=host) as secured:
            if bundle is None:
                return Diagnosis(
                    f"{server} speaks TLS, and this end does not. Add --certs DIR.", final=True
                )
            return _answered(secured, server, bundle)
    except ssl.SSLCertVerificationError as error:
        assert bundle is not None
        # The server takes up a renewed certificate while it runs, and clocks are set: that may pass.
        final = error.verify_code not in (X509_EXPIRED, X509_NOT_YET)
        return Diagnosis(_of_server(error, host, server, bundle), final)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return Diagnosis(f"{server} takes connections and ends them without a word. {BEHIND}")
    except ssl.SSLError:
        return _plain(server, bundle)


def _answered(secured: ssl.SSLSocket, server: str, bundle: Bundle) -> Diagnosis:
    """In TLS 1.3 a client hears only afterwards what the server thinks of its certificate."""
    try:
        if secured.recv(1):
            return Diagnosis()
    except (ssl.SSLError, ConnectionError):
        pass
    return Diagnosis(
        f"{server} does not take the certificate {bundle.path / CERTIFICATE}: it should be signed by the "
        "authority that the server trusts, not have expired, and be valid by the clock of the server.",
        final=True,
    )


def _plain(server: str, bundle: Bundle | None) -> Diagnosis:
    if bundle is None:
        return Diagnosis()
    return Diagnosis(
        f"{server} does not speak TLS. Start the server with --certs DIR too, or connect without.",
        final=True,
    )


def _of_server(error: ssl.SSLCertVerificationError, host: str, server: str, bundle: Bundle) -> str:
    """What this end has against the certificate of the server."""
    if error.verify_code in X509_OTHER_NAME:
        return (
            f"The certificate of {server} should name {host!r}. It does not; issue it again with "
            f"`varangian certs issue DIR --server {host}`, or connect to a name that it has."
        )
    if error.verify_code == X509_EXPIRED:
        return (
            f"The certificate of {server} has expired. Renew it with `varangian certs issue --force`; if "
            "it is good, set the clock of this machine."
        )
    if error.verify_code == X509_NOT_YET:
        return f"The certificate of {server} is not valid yet. Are the clocks of both machines right?"
    return (
        f"The certificate of {server} should be signed by {bundle.path / 'ca.pem'}. OpenSSL says: "
        f"{error.verify_message}. Do both ends have bundles of the same authority?"
    )
