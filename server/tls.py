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
    Holder,
    Role,
    find,
    holder,
    identity_uri,
)
from varangian.protos.text import escaped, quoted
from varangian.server.revoked import Revoked, der, fingerprint
from varangian.server.roster import IdentityError, Peer, Stranger

log = logging.getLogger(__name__)

VERSION = "TLSv1.3"
URI_TAG = 0x86
"""What a URI among alternative names begins with in DER, before a length that is below 128 for ours."""


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
            self.doorman = Certificates(self.bundle.cluster, Revoked(self.bundle.path / REVOKED))
        except (OSError, ValueError) as error:
            raise BundleError(str(error)) from None

    def credentials(self) -> grpc.ServerCredentials:
        """For one port; it asks every peer for a certificate, and shows a renewed one without a restart."""
        renewal = Renewal(self.bundle)
        # None is how gRPC wants to hear that nothing has changed; its types do not say so.
        fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], renewal)
        return grpc.dynamic_ssl_server_credentials(renewal.made, fetch, require_client_authentication=True)


class Certificates:
    """Reads role and name off a certificate that TLS has verified.

    Args:
        cluster: the id of the authority whose certificates count. TLS alone takes those of every authority
            in `ca.pem`.
        revoked: which of them count no longer.
    """

    def __init__(self, cluster: str, revoked: Revoked) -> None:
        self._cluster = cluster
        self._revoked = revoked

    def named(self, peer: Peer) -> str | None:
        """The worker of this cluster on a certificate, revoked or not, if there is one."""
        found = _stated(peer)
        ours = found is not None and (found.cluster, found.role) == (self._cluster, Role.WORKER)
        return found.name if found is not None and ours else None

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
        found = self._holder(peer)
        if found.role is not Role.WORKER:
            raise IdentityError(
                Stranger.ROLE, f"Found the certificate of the {found.role.value} {quoted(found.name, 70)}."
            )
        return found.name

    def _holder(self, peer: Peer) -> Holder:
        versions = _texts(peer, "ssl_tls_version")
        if versions != [VERSION]:
            raise IdentityError(
                Stranger.UNCERTIFIED, f"Found {escaped(versions[0], 20) if versions else 'no TLS'}."
            )
        found = _stated(peer)
        if found is None:
            raise IdentityError(
                Stranger.UNCERTIFIED, "Found one without a URI varangian:CLUSTER:ROLE:NAME of ours."
            )
        if found.cluster != self._cluster:
            raise IdentityError(
                Stranger.OTHER_CLUSTER,
                f"Found that of the {found.role.value} {quoted(found.name, 70)} of cluster "
                f"{found.cluster}; this server is in {self._cluster}.",
            )
        if fingerprint(next(iter(peer["x509_pem_cert"]))) in self._revoked:
            raise IdentityError(
                Stranger.REVOKED, f"Found that of the {found.role.value} {quoted(found.name, 70)}."
            )
        return found


class Renewal:
    """The bundle as gRPC wants it, which asks at every handshake, and again when its files have changed."""

    def __init__(self, bundle: Bundle) -> None:
        self._path, self._cluster = bundle.path, bundle.cluster
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
            self.made = _configuration(self._same_cluster(Bundle.load(self._path, Role.SERVER)))
        except BundleError as error:
            log.error("security: the old certificate of the server stays in use: %s", error)
            return None
        log.info("security: the certificate of the server was renewed")
        return self.made

    def _same_cluster(self, bundle: Bundle) -> Bundle:
        if bundle.cluster != self._cluster:
            raise BundleError(
                f"{self._path / CERTIFICATE} should be of the cluster {self._cluster}. "
                f"Found {bundle.cluster}. Start the server again to serve another cluster."
            )
        return bundle

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


def _stated(peer: Peer) -> Holder | None:
    """Whom a certificate names; only URIs count, which gRPC lists apart from names of other types."""
    found = holder(_texts(peer, "peer_uri"), _texts(peer, "x509_subject_alternative_name"))
    certificates = list(peer.get("x509_pem_cert", ()))
    if found is None or len(certificates) != 1:
        return None
    # gRPC ends a name at its first NUL. The certificate itself has the whole name, after type and length.
    uri = identity_uri(found.cluster, found.role, found.name).encode()
    return found if bytes((URI_TAG, len(uri))) + uri in der(certificates[0]) else None


def _texts(peer: Peer, key: str) -> list[str]:
    values: Iterable[bytes] = peer.get(key, ())
    return [value.decode("utf-8", "replace") for value in values]
