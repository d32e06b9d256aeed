"""Access to the metrics port: a bearer token, the certificate of an operator, or this machine alone.

The token and the certificate say who may look; the name in the header Host says for whom a browser looks.
A page of somebody else whose name resolves to this machine (DNS rebinding) sends its own name there.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import CERTIFICATE, KEY, Bundle
from varangian.protos.text import quote
from varangian.server.identity.sessions import Peer
from varangian.server.identity.tls import Security
from varangian.structured_logs import event

log = logging.getLogger(__name__)

TOKEN_BYTES = 16
"""The least length of a token."""
LARGEST = 1 << 12
"""Bytes that are read of a token's file at most."""
FORBIDDEN_MODE = 0o027
"""Bits of a token's file that nobody but its owner needs. Its group may read it, as in a container whose
user has it through a group."""
BEARER = re.compile(r"[Bb]earer +([!-~]+) *")
PORT = re.compile(r":\d{1,5}$")


class TokenError(ValueError):
    """The file of a token cannot be used; the text has the path, what was found, and what to do."""


def read_token(path: Path) -> bytes:
    """The token in a file.

    Raises:
        TokenError: there is none, it is too short, or others may read it.
    """
    make = f"Make one: (umask 077; openssl rand -hex 32 > {path})"
    try:
        with path.open("rb") as stream:
            mode = path.stat().st_mode
            token = stream.read(LARGEST).strip()
    except OSError as error:
        reason = error.strerror or error
        raise TokenError(f"{path} should be a readable file. The system says: {reason}. {make}") from None
    if mode & FORBIDDEN_MODE:
        found = f"Found the mode {mode & 0o777:04o}. chmod 600 {path}"
        raise TokenError(f"{path} should be writable by its owner alone, and not readable by all. {found}")
    if len(token) < TOKEN_BYTES or not all(0x21 <= byte < 0x7F for byte in token):
        rule = f"should hold a token of {TOKEN_BYTES} printable characters or more, without spaces"
        raise TokenError(f"{path} {rule}. Found {len(token)} bytes. {make}")
    return token


@dataclass
class Access:
    """Decides who may look, and under which names the port may be addressed.

    Without a token and certificates everybody on this machine may.
    """

    token: bytes | None = field(default=None, repr=False)
    security: Security | None = None
    names: frozenset[str] = frozenset()
    """Host names that are ours, besides addresses and those of this machine."""
    _logged: set[str] = field(default_factory=set[str], repr=False)

    @property
    def open(self) -> bool:
        """Whether everybody who can connect may look."""
        return self.token is None and self.security is None

    @property
    def kind(self) -> str:
        """How a browser may look: `open`, or with a `token`, a `certificate`, or `either`."""
        if self.token is None:
            return "open" if self.security is None else "certificate"
        return "token" if self.security is None else "either"

    def why_not(self, authorization: str | None, peer: Peer | None) -> str:
        """Why this caller may not look; empty if it may.

        Args:
            authorization: the header of this name.
            peer: what its channel proves; None without a certificate.
        """
        if self.open:
            return ""
        reasons: list[str] = []
        if self.token is not None:
            shown = BEARER.fullmatch(authorization or "")
            if shown is not None and hmac.compare_digest(shown[1].encode(), self.token):
                return ""
            reasons.append("the token of this server" + (", and not another one" if shown else ""))
        if self.security is not None:
            if peer is not None:
                try:
                    self.security.certificate_reader.operator(peer)
                except Refused as error:
                    reasons.append(f"the valid certificate of an operator. {error}")
                else:
                    return ""
            else:
                reasons.append("the certificate of an operator")
        return f"This needs {', or '.join(reasons)}"

    def note_refused(self, address: str, reason: str) -> None:
        """Log the first refusal of an address."""
        if address not in self._logged and len(self._logged) < 1000:
            self._logged.add(address)
            log.warning(
                "metrics port: refused %s: %s",
                quote(address, 70),
                quote(reason),
                extra=event("metrics_refused"),
            )

    def is_ours(self, host: str) -> bool:
        """Whether a header Host names this machine. Where callers prove who they are, any name does."""
        if not self.open:
            return True
        name = PORT.sub("", host) if host.startswith("[") or host.count(":") == 1 else host
        name = name.strip("[]").lower().removesuffix(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            return True
        own = {"localhost", socket.gethostname().lower(), *self.names}
        return name in own or name.endswith(".localhost")


class TlsContexts:
    """The TLS context for connections from now on, renewed with the server's certificate.

    Certificates of callers are asked for and not demanded: a health check has none, nor who has a token.

    Args:
        security: of the server.
    """

    def __init__(self, security: Security) -> None:
        self._security = security
        self._bundle = security.renewal.bundle
        self._context = _context(self._bundle)

    def latest(self) -> ssl.SSLContext:
        """With the certificate of this moment."""
        bundle = self._security.renewal.bundle
        if bundle is not self._bundle:
            try:
                self._context = _context(bundle)
            except (OSError, ssl.SSLError):
                return self._context  # its files are being replaced once more
            self._bundle = bundle
        return self._context


def _context(bundle: Bundle) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # each connection proves who it is
    # Without a password given here OpenSSL asks for one on the terminal.
    context.load_cert_chain(bundle.path / CERTIFICATE, bundle.path / KEY, password=lambda: "")
    context.load_verify_locations(cadata=bundle.ca.decode("ascii", "replace"))
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def peer_of(channel: ssl.SSLObject | None) -> Peer | None:
    """The facts that a TLS connection proves, by the names that gRPC has for them; None without any."""
    certificate = channel.getpeercert(binary_form=True) if channel is not None else None
    if channel is None or not certificate:
        return None
    stated = cast("Mapping[str, Any]", channel.getpeercert() or {})
    names: Iterable[tuple[str, str]] = stated.get("subjectAltName", ())
    return {
        "ssl_tls_version": [(channel.version() or "").encode()],
        "peer_uri": [value.encode() for kind, value in names if kind == "URI"],
        "x509_subject_alternative_name": [value.encode() for _, value in names],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(certificate).encode()],
    }
