"""TLS at the server: whom it lets connect, and what it reads off their certificates.

Every connection is mutual TLS. gRPC for Python has no setting for the least version of TLS; both ends offer
1.3, and a call that came over an older version is refused here, before a byte of it is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import grpc

from varangian.protos.bundle import (
    CA,
    CERTIFICATE,
    KEY,
    REVOKED,
    Bundle,
    BundleError,
    Role,
    find,
    parsed,
)
from varangian.server.revoked import Revoked, fingerprint
from varangian.server.roster import IdentityError, Peer, Stranger

log = logging.getLogger(__name__)

VERSION = "TLSv1.3"


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


class Renewal:
    """The bundle as gRPC wants it, which asks at every handshake, and again when its files have changed."""

    def __init__(self, bundle: Bundle) -> None:
        self._path = bundle.path
        self._seen = self._version()
        self.made = _configuration(bundle)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate once it has changed; None as long as nothing has."""
        version = self._version()
        if version == self._seen:
            return None
        # A bundle that is being replaced is looked at again, a bad one only once it changes.
        self._seen = version
        try:
            self.made = _configuration(Bundle.load(self._path, Role.SERVER))
        except BundleError as error:
            log.error("security: the old certificate of the server stays in use: %s", error)
            return None
        log.info("security: the certificate of the server was renewed")
        return self.made

    def _version(self) -> tuple[tuple[int, int], ...]:
        return tuple(_stamp(self._path / name) for name in (CA, CERTIFICATE, KEY))


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
