"""Bundles: the directory with which a program proves its identity.

ca.pem     the certificate of the authority that both ends trust
cert.pem   the certificate of this program; a URI in it says `varangian:CLUSTER:ROLE:NAME`
key.pem    the private key that belongs to it
revoked    only in a server's: fingerprints of revoked certificates

Only the standard library reads it, so that running with TLS needs no further package. It has no parser of
certificates; what a certificate says is read from a TLS handshake in memory, which also checks the chain,
the dates and the key in the way that the other end will.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

CA, CERTIFICATE, KEY, REVOKED = "ca.pem", "cert.pem", "key.pem", "revoked"
METRICS_TOKEN = "metrics-token"
"""Beside a server's bundle, and at whoever collects metrics: what opens the metrics port."""
REQUEST = "request.pem"
"""Beside a key that was made where it is used: what the authority is asked to sign."""
SCHEME = "varangian"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""The name of a worker, a server or an operator."""
HOLDER = re.compile(rf"{SCHEME}:([0-9a-f]{{32}}):(server|worker|operator):({NAME.pattern})")
"""The URI that says whose a certificate is; the cluster is the id of its authority."""
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the module `ssl` does not name."""
HANDSHAKE_STEPS = 8
"""More than the messages of any handshake."""
X509_NOT_YET, X509_EXPIRED, X509_PURPOSE = 9, 10, 26


class Role(Enum):
    """Role of the holder of a certificate."""

    SERVER = "server"
    """May be a server, and ask one for its status."""
    WORKER = "worker"
    """May take part in a run under the name on the certificate."""
    OPERATOR = "operator"
    """May ask a server for its status, and look at and change who is a worker of its run."""

    @property
    def indefinite(self) -> str:
        """With its article, for sentences."""
        return f"{'an' if self is Role.OPERATOR else 'a'} {self.value}"


@dataclass(frozen=True)
class Holder:
    """The holder of a certificate."""

    cluster: str
    """The id of the authority, 32 hexadecimal digits."""
    role: Role
    name: str


class BundleError(ValueError):
    """A bundle cannot be used; the text has the path, what was found, and what to do."""


@dataclass(frozen=True)
class Bundle:
    """A certificate with its key and its authority, checked."""

    path: Path
    role: Role
    name: str
    cluster: str
    """The id of the authority that made it."""
    hosts: tuple[str, ...]
    """The addresses that a server may be reached under."""
    begins: float
    ends: float
    """Seconds since 1970 between which the certificate is valid."""
    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path, role: Role | None = None) -> Bundle:
        """Read a bundle, and check that the other end will accept it.

        Raises:
            BundleError: it cannot be used, or not in this role.
        """
        bundle = cls._of(path, *_texts(path))
        if [bundle.ca, bundle.certificate, bundle.key] != _texts(path):  # renewed meanwhile
            bundle = cls._of(path, *_texts(path))
        if role is not None and bundle.role is not role:
            found = f"{path / CERTIFICATE} should be the certificate of {role.indefinite}. "
            raise BundleError(f"{found}Found that of the {bundle.role.value} {bundle.name}.")
        return bundle

    @classmethod
    def _of(cls, path: Path, ca: bytes, certificate: bytes, key: bytes) -> Bundle:
        stated = _checked_certificate(path)
        holder = read_identity(path, stated)
        _check_dates_and_chain(path, holder.role)
        hosts = tuple(
            value if kind == "DNS" else str(ipaddress.ip_address(value))
            for kind, value in _alternatives(stated)
            if kind in ("DNS", "IP Address")
        )
        begins, ends = (ssl.cert_time_to_seconds(stated[key]) for key in ("notBefore", "notAfter"))
        return cls(
            path, holder.role, holder.name, holder.cluster, hosts, begins, ends, ca, certificate, key
        )


def find_bundle(path: Path, name: str) -> Path:
    """The bundle of a name: the directory itself, or the one of that name in it.

    Raises:
        BundleError: there is neither.
    """
    for candidate in (path, path / name):
        if (candidate / CERTIFICATE).is_file():
            return candidate
    raise BundleError(
        f"{path} should hold {CERTIFICATE}, or a directory {name} that does. Found neither. "
        "`varangian certs issue` makes it."
    )


def identity_uri(cluster: str, role: Role, name: str) -> str:
    """The URI on a certificate that names its holder."""
    return f"{SCHEME}:{cluster}:{role.value}:{name}"


def parse_holder(uris: Iterable[str], others: Iterable[str] = ()) -> Holder | None:
    """The holder that the one URI of ours names; None without one, or with several.

    Args:
        uris: the alternative names of a certificate that are URIs. One of another type never counts.
        others: its alternative names of other types. A NUL in any name makes all of them suspect: programs
            differ in whether they read on after it.
    """
    uris = list(uris)
    ours = [uri for uri in uris if uri.startswith(f"{SCHEME}:")]
    found = HOLDER.fullmatch(ours[0]) if len(ours) == 1 else None
    if found is None or any("\0" in text for text in (*uris, *others)):
        return None
    return Holder(found[1], Role(found[2]), found[3])


def read_identity(path: Path, stated: Mapping[str, Any]) -> Holder:
    names = _alternatives(stated)
    found = parse_holder([value for kind, value in names if kind == "URI"], [value for _, value in names])
    if found is None:
        raise BundleError(
            f"{path / CERTIFICATE} should have one URI {SCHEME}:CLUSTER:ROLE:NAME among its alternative "
            "names, its role server, worker or operator. Found none, or several; certificates of earlier "
            "releases do not name their cluster. `varangian certs issue` makes such certificates."
        )
    return found


def ssl_contexts(path: Path | None) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts of a server and a client with the certificate of a bundle; they ask for none as yet."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.verify_mode = ssl.CERT_NONE
        if path is not None:
            # Without a password given here OpenSSL asks for one on the terminal.
            context.load_cert_chain(path / CERTIFICATE, path / KEY, password=lambda: "")
            context.load_verify_locations(path / CA)
    return server, client


def _texts(path: Path) -> list[bytes]:
    return [_read(path / name) for name in (CA, CERTIFICATE, KEY)]


def _read(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        found = f"{path} should be readable. The system says: {error.strerror}."
        raise BundleError(f"{found} `varangian certs issue` makes it.") from None
    if b"-----BEGIN " not in text:
        raise BundleError(f"{path} should be a PEM file. Found none in its {len(text)} bytes.")
    return text


def _alternatives(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(stated.get("subjectAltName", ()))


def _checked_certificate(path: Path) -> Mapping[str, Any]:
    """The contents of a certificate, with key and chain checked; it may have expired."""
    try:
        return _handshake(path, Role.WORKER, NO_CHECK_TIME)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == X509_PURPOSE:
            found = f"{path / CERTIFICATE} should be good for clients."
            raise BundleError(f"{found} `varangian certs issue` makes one.") from None
        raise BundleError(
            f"{path / CERTIFICATE} should be signed by {path / CA}. OpenSSL says: {error.verify_message}. "
            "Copy all three files of a bundle together."
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BundleError(
                f"{path / KEY} should be the key of {path / CERTIFICATE}. Found another key. "
                "Copy all three files of a bundle together."
            ) from None
        said = error.reason or "not a usable certificate, key or authority"
        raise BundleError(
            f"{path} should hold a certificate, its key without a password, and its authority. "
            f"OpenSSL says: {said}."
        ) from None


def _check_dates_and_chain(path: Path, role: Role) -> None:
    try:
        _handshake(path, role, 0)
    except ssl.SSLCertVerificationError as error:
        sentences = {
            X509_EXPIRED: "should not have expired, nor should its authority. "
            "Renew it with `varangian certs issue --force`.",
            X509_NOT_YET: "should be valid already. Is the clock of this machine right?",
            X509_PURPOSE: f"should be good for {role.indefinite}. `varangian certs issue` makes one.",
        }
        otherwise = f"should be valid. OpenSSL says: {error.verify_message}."
        sentence = sentences.get(error.verify_code, otherwise)
        raise BundleError(f"{path / CERTIFICATE} {sentence}") from None


def _handshake(path: Path, role: Role, flags: int) -> Mapping[str, Any]:
    """The certificate as the other end sees it, after a handshake in memory with a server or a client."""
    server, client = ssl_contexts(path)
    verifier = client if role is Role.SERVER else server
    verifier.verify_mode = ssl.CERT_REQUIRED
    verifier.verify_flags |= ssl.VerifyFlags(flags)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for _ in range(HANDSHAKE_STEPS):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0 if role is Role.SERVER else 1].getpeercert() or {}
