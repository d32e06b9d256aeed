"""Diagnosis of a connection that cannot be made: address, port, TLS or certificate.

gRPC reports most of these as `UNAVAILABLE: Socket closed`. So after a failure the handshake is done once
more by the standard library, which says which end rejected what.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from varangian.protos.identity.bundle import CERTIFICATE, X509_EXPIRED, X509_NOT_YET, Bundle, ssl_contexts
from varangian.protos.network.address import AddressError, parse_address
from varangian.protos.network.descriptors import exhausted

PATIENCE = 3.0
"""Seconds for each step of a diagnosis."""
BEHIND = "Is the server running, behind what forwards its port?"
X509_OTHER_NAME = frozenset({62, 64})
"""Verification errors of OpenSSL: another host name, another address."""


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis: the reason why there is no connection."""

    sentence: str = ""
    """Empty when nothing is wrong below the calls."""
    final: bool = False
    """Whether it will still be so in a moment."""


def diagnose(server: str, bundle: Bundle | None, patience: float = PATIENCE) -> Diagnosis:
    """Connect to `host:port` as a client with or without TLS does; returns what is wrong. Blocks."""
    try:
        found = parse_address(server)
    except AddressError as error:
        return Diagnosis(f"The address of a server {error}", final=True)
    host = found[0]
    try:
        with socket.create_connection(found, patience) as connection:
            return _handshake(connection, host, server, bundle)
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


def _handshake(connection: socket.socket, host: str, server: str, bundle: Bundle | None) -> Diagnosis:
    context = ssl_contexts(None if bundle is None else bundle.path)[1]
    context.set_alpn_protocols(["h2"])
    if bundle is not None:
        context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            if bundle is None:
                return Diagnosis(
                    f"{server} speaks TLS, and this end does not. Add --certs DIR.", final=True
                )
            return _server_verdict(secured, server, bundle)
    except ssl.SSLCertVerificationError as error:
        assert bundle is not None
        # The server takes up a renewed certificate while it runs, and clocks are set: that may pass.
        final = error.verify_code not in (X509_EXPIRED, X509_NOT_YET)
        return Diagnosis(_certificate_error(error, host, server, bundle), final)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return Diagnosis(f"{server} takes connections and ends them without a word. {BEHIND}")
    except ssl.SSLError:
        return _without_tls(server, bundle)


def _server_verdict(secured: ssl.SSLSocket, server: str, bundle: Bundle) -> Diagnosis:
    """The server's verdict on our certificate, which a client of TLS 1.3 gets only after the handshake."""
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


def _without_tls(server: str, bundle: Bundle | None) -> Diagnosis:
    if bundle is None:
        return Diagnosis()
    return Diagnosis(
        f"{server} does not speak TLS. Start the server with --certs DIR too, or connect without.",
        final=True,
    )


def _certificate_error(error: ssl.SSLCertVerificationError, host: str, server: str, bundle: Bundle) -> str:
    """Why the certificate of the server was rejected, and what to do."""
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
