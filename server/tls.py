"""TLS at the server: whom it lets connect, and what it reads off their certificates.

Every connection is mutual TLS. gRPC for Python has no setting for the least version of TLS; both ends offer
1.3, and a call that came over an older version is refused here, before a byte of it is read.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar, cast

import grpc

from varangian.protos.bundle import (
    CA,
    CERTIFICATE,
    KEY,
    REVOKED,
    Bundle,
    BundleError,
    Role,
    contexts,
    find,
    parsed,
)
from varangian.server.revoked import Revoked, fingerprint
from varangian.server.roster import IdentityError, Peer, Stranger

log = logging.getLogger(__name__)

VERSION = "TLSv1.3"

T = TypeVar("T")


class Security:
    """What a server needs to be one that only certified peers can talk to.

    Args:
        path: the server's bundle, or a directory that holds it under the name `server`.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.bundle = Bundle.load(find(path, Role.SERVER.value), Role.SERVER)
        try:
            self.doorman = Certificates(Revoked(self.bundle.path / REVOKED))
        except (OSError, ValueError) as error:
            raise BundleError(str(error)) from None
        self._beside = Kept(self.bundle, _context, "payloads")

    def context(self) -> ssl.SSLContext:
        """For a new connection beside gRPC, on the same terms."""
        self._beside.renewed()
        return self._beside.made

    def credentials(self) -> grpc.ServerCredentials:
        """For one port; it asks every peer for a certificate, and shows a renewed one without a restart."""
        renewal = Renewal(self.bundle)
        # None is how gRPC wants to hear that nothing has changed; its types do not say so.
        fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], renewal)
        return grpc.dynamic_ssl_server_credentials(renewal.made, fetch, require_client_authentication=True)


class Certificates:
    """Reads role and name off a certificate that TLS has verified."""

    def __init__(self, revoked: Revoked) -> None:
        self._revoked = revoked

    def named(self, peer: Peer) -> str | None:
        """The worker on a certificate, revoked or not, if there is one."""
        found = parsed(_texts(peer, "x509_subject_alternative_name"))
        return found[1] if found is not None and found[0] is Role.WORKER else None

    def admit(self, peer: Peer) -> None:
        """Any role will do.

        Raises:
            IdentityError: there is no certificate of ours, or it was revoked.
        """
        self._holder(peer)

    def worker(self, peer: Peer) -> str:
        """The name of a worker.

        Raises:
            IdentityError: there is no certificate of ours, it was revoked, or it has another role.
        """
        role, name = self._holder(peer)
        if role is not Role.WORKER:
            raise IdentityError(Stranger.ROLE, f"Found the certificate of the {role.value} {name!r:.70}.")
        return name

    def _holder(self, peer: Peer) -> tuple[Role, str]:
        versions = _texts(peer, "ssl_tls_version")
        if versions != [VERSION]:
            raise IdentityError(
                Stranger.UNCERTIFIED, f"Found {versions[0] if versions else 'no TLS'!s:.20}."
            )
        found = parsed(_texts(peer, "x509_subject_alternative_name"))
        certificates = list(peer.get("x509_pem_cert", ()))
        if found is None or len(certificates) != 1:
            raise IdentityError(
                Stranger.UNCERTIFIED, "Found one without varangian:ROLE:NAME among its alternative names."
            )
        if fingerprint(certificates[0]) in self._revoked:
            raise IdentityError(Stranger.REVOKED, f"Found that of the {found[0].value} {found[1]!r:.70}.")
        return found


class Kept(Generic[T]):
    """What is made of a bundle, and made again when its files have changed.

    Args:
        bundle: as it is now.
        make: raises BundleError when that cannot be done.
        purpose: what it is for, for the log.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(self, bundle: Bundle, make: Callable[[Bundle], T], purpose: str) -> None:
        self._path = bundle.path
        self._make = make
        self._purpose = purpose
        self._seen = self._version()
        self.made = make(bundle)

    def renewed(self) -> bool:
        """Whether there is another one since the last time; a bad one does not count."""
        version = self._version()
        if version == self._seen:
            return False
        # A bundle that is being replaced is looked at again, a bad one only once it changes.
        self._seen = version
        try:
            self.made = self._make(Bundle.load(self._path, Role.SERVER))
        except BundleError as error:
            log.error("security: the old certificate of the server stays in use: %s", error)
            return False
        log.info("security: the certificate of the server was renewed for %s", self._purpose)
        return True

    def _version(self) -> tuple[tuple[int, int], ...]:
        return tuple(_stamp(self._path / name) for name in (CA, CERTIFICATE, KEY))


class Renewal(Kept[grpc.ServerCertificateConfiguration]):
    """For gRPC, which asks at every handshake."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, _configuration, "calls")

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate once it has changed; None as long as nothing has."""
        return self.made if self.renewed() else None


def _context(bundle: Bundle) -> ssl.SSLContext:
    """TLS 1.3 and nothing to come back with: each connection shows its certificate."""
    try:
        context, _ = contexts(bundle.path)
    except (OSError, ssl.SSLError) as error:
        raise BundleError(f"{bundle.path} should not change while it is read: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return context


def _configuration(bundle: Bundle) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(bundle.key, bundle.certificate)], bundle.ca)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _texts(peer: Peer, key: str) -> list[str]:
    values: Iterable[bytes] = peer.get(key, ())
    return [value.decode("utf-8", "replace") for value in values]
