"""TLS at the server: its credentials and their renewal, and the certificates of callers.

Every connection is mutual TLS. gRPC for Python has no setting for the least version of TLS; both ends offer
1.3, and a call that came over an older version is refused here, before a byte of it is read.

TLS checks a certificate when a connection begins, and a resumed session skips even that. So dates and
revocation are checked here for every call, also on a resumed session, which shows the certificate that it
began with.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import cast

import grpc

from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import (
    CA,
    CERTIFICATE,
    KEY,
    REVOKED,
    Bundle,
    BundleError,
    Holder,
    Role,
    find_bundle,
    identity_uri,
    parse_holder,
)
from varangian.protos.identity.certificate import PeerCertificate, fingerprint_and_end
from varangian.protos.identity.revocation import RevocationList, der
from varangian.protos.identity.watched_files import Change, Failure, WatchedFiles
from varangian.protos.network.descriptors import Spare
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape, quote
from varangian.server.identity.sessions import Peer
from varangian.structured_logs import event

log = logging.getLogger(__name__)

VERSION = "TLSv1.3"
SOON = 3 * 86400.0
"""Seconds before the end of the server's certificate from which `varangian health` says so."""
CERTIFICATES = 1024
"""Certificates whose parsed contents are kept."""
URI_TAG = 0x86
"""Tag of a URI among alternative names in DER; a length follows, below 128 for ours."""


class Security:
    """The bundle of a server that accepts only peers with certificates.

    Args:
        path: the server's bundle, or a directory that holds it under the name `server`.
        clock: seconds from any start.
        now: seconds since 1970.

    Raises:
        BundleError: the bundle cannot be used, or has no list of revoked certificates.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.bundle = Bundle.load(find_bundle(path, Role.SERVER.value), Role.SERVER)
        spare = Spare()
        try:
            self.revoked = RevocationList(self.bundle.path / REVOKED, spare, clock=clock)
            self.renewal = CertificateRenewal(self.bundle, spare, clock=clock, now=now)
        except (OSError, ValueError) as error:
            raise BundleError(str(error)) from None
        self.certificate_reader = Certificates(self.bundle.cluster, self.revoked, now)

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for a port, which ask for a certificate and renew our own without a restart."""
        return _dynamic(self.renewal, mutual=True)

    def one_way_credentials(self) -> grpc.ServerCredentials:
        """The same for a port whose callers have no certificate yet, and prove nothing."""
        # Of its own, since each port has to be given a new certificate once.
        return _dynamic(CertificateRenewal(self.renewal.bundle), mutual=False)

    def look(self) -> None:
        """Read what has changed of the bundle; at most once a second. May take some milliseconds."""
        self.revoked.look()
        self.renewal.look()

    def warnings(self) -> tuple[str, ...]:
        """Problems of the bundle just now, a sentence each; public, and so without paths."""
        return (
            *_failure_warning(
                self.revoked.failure, "The list of revoked certificates", "the last good one"
            ),
            *_failure_warning(self.renewal.failure, "The certificate of the server", "the one before"),
            *self.renewal.expiry_warning(),
        )


class Certificates:
    """Authenticates callers by certificates that TLS has verified.

    Args:
        cluster: the id of the authority whose certificates count. TLS alone takes those of every authority
            in `ca.pem`.
        revoked: which of them are not valid any more.
        now: seconds since 1970.
    """

    def __init__(self, cluster: str, revoked: RevocationList, now: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._revoked = revoked
        self._now = now

    def worker_name(self, peer: Peer) -> str | None:
        """The worker of this cluster named on a certificate, revoked or not; None if there is none."""
        found, _ = _read(peer)
        ours = found is not None and (found.cluster, found.role) == (self._cluster, Role.WORKER)
        return found.name if found is not None and ours else None

    def admit(self, peer: Peer) -> str:
        """The holder of a certificate of any role: the name of a worker, or role and name.

        Raises:
            Refused: there is no valid certificate of ours.
        """
        found = self._holder(peer)
        return found.name if found.role is Role.WORKER else f"the {found.role.value} {found.name}"

    def worker(self, peer: Peer) -> str:
        """The name of a worker.

        Raises:
            Refused: there is no valid certificate of ours, or it has another role.
        """
        return self._in_role(Role.WORKER, peer)

    def operator(self, peer: Peer) -> str:
        """The name of an operator.

        Raises:
            Refused: there is no valid certificate of ours, or it has another role.
        """
        return self._in_role(Role.OPERATOR, peer)

    def certificate(self, peer: Peer) -> PeerCertificate | None:
        """The certificate of a caller; None where there is none of ours."""
        return _read(peer)[1]

    def why_invalid(self, certificate: PeerCertificate) -> Refused | None:
        """Why a certificate that was accepted is not valid any more; None while it is."""
        if certificate.fingerprint in self._revoked:
            return Refused(Refusal.REVOKED, f"Found that of {certificate.holder}.")
        if self._now() > certificate.ends:
            return Refused(
                Refusal.EXPIRED,
                f"Found that of {certificate.holder}, valid until {_date(certificate.ends)}.",
            )
        return None

    def _in_role(self, role: Role, peer: Peer) -> str:
        found = self._holder(peer)
        if found.role is not role:
            raise Refused(
                Refusal.ROLE,
                f"Found the certificate of the {found.role.value} {quote(found.name, 70)}, where that of "
                f"{role.indefinite} is needed.",
            )
        return found.name

    def _holder(self, peer: Peer) -> Holder:
        versions = _texts(peer.get("ssl_tls_version", ()))
        if versions != [VERSION]:
            raise Refused(
                Refusal.UNCERTIFIED, f"Found {escape(versions[0], 20) if versions else 'no TLS'}."
            )
        found, certificate = _read(peer)
        if found is None:
            raise Refused(
                Refusal.UNCERTIFIED, "Found one without a URI varangian:CLUSTER:ROLE:NAME of ours."
            )
        if found.cluster != self._cluster:
            raise Refused(
                Refusal.OTHER_CLUSTER,
                f"Found that of the {found.role.value} {quote(found.name, 70)} of cluster "
                f"{found.cluster}; this server is in {self._cluster}.",
            )
        if certificate is None:
            raise Refused(Refusal.UNCERTIFIED, "Found one whose dates cannot be read.")
        if error := self.why_invalid(certificate):
            raise error
        return found


class CertificateRenewal:
    """The server's own certificate, renewed when its files change; gRPC asks for it at every handshake."""

    def __init__(
        self,
        bundle: Bundle,
        spare: Spare | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._cluster, self._now = bundle.path, bundle.cluster, now
        paths = [bundle.path / name for name in (CA, CERTIFICATE, KEY)]
        self._watched = WatchedFiles(paths, self._read, spare or Spare(), clock=clock, wall=now)
        self._lock = threading.Lock()
        self._shown: Bundle | None = None

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._watched.value

    @property
    def failure(self) -> Failure | None:
        """Why the files on the disk are not in use; None while they are."""
        return self._watched.failure

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The certificate for handshakes from now on."""
        self._shown = self.bundle
        return _configuration(self._shown)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate from this handshake on; None, for gRPC, where it has not changed.

        gRPC puts a new one in the place of the old without a lock, while other handshakes may use the old
        one, so it must be given as seldom as possible: never for each handshake.
        """
        self.look()
        with self._lock:
            return None if self.bundle == self._shown else self.configuration()

    def look(self) -> None:
        """Read the bundle again if it has changed; at most once a second."""
        change = self._watched.look()
        if change is Change.CHANGED:
            log.info(
                "security: the certificate of the server was renewed", extra=event("certificate_renewed")
            )
        elif change is Change.FAILED and self.failure is not None:
            log.error(
                "security: the old certificate of the server stays in use: %s",
                self.failure.error,
                extra=event("certificate_kept"),
            )

    def expiry_warning(self) -> tuple[str, ...]:
        """A warning when the certificate is about to expire."""
        left = self.bundle.ends - self._now()
        if left > SOON:
            return ()
        until = _date(self.bundle.ends)
        return (f"The certificate of the server is valid until {until} only: renew it.",)

    def _read(self) -> Bundle:
        return self._same_cluster(Bundle.load(self._path, Role.SERVER))

    def _same_cluster(self, bundle: Bundle) -> Bundle:
        if bundle.cluster != self._cluster:
            raise BundleError(
                f"{self._path / CERTIFICATE} should be of the cluster {self._cluster}. "
                f"Found {bundle.cluster}. Start the server again to serve another cluster."
            )
        return bundle


def _dynamic(renewal: CertificateRenewal, *, mutual: bool) -> grpc.ServerCredentials:
    # None is how gRPC wants to hear that nothing has changed; its types do not say so.
    changed = cast("Callable[[], grpc.ServerCertificateConfiguration]", renewal.changed)
    return grpc.dynamic_ssl_server_credentials(
        renewal.configuration(), changed, require_client_authentication=mutual
    )


def _failure_warning(failure: Failure | None, what: str, instead: str) -> tuple[str, ...]:
    if failure is None:
        return ()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(failure.since))
    state = "is missing" if failure.missing else "cannot be read"
    return (f"{what} {state} since {since} UTC; {instead} stays in force. The log of the server says why.",)


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _configuration(bundle: Bundle) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(bundle.key, bundle.certificate)], bundle.ca)


def _read(peer: Peer) -> tuple[Holder | None, PeerCertificate | None]:
    """The holder named on a certificate, and what else is on it.

    Only URIs count, which gRPC lists apart from other names.
    """
    uris, names = peer.get("peer_uri", ()), peer.get("x509_subject_alternative_name", ())
    return _parse(tuple(uris), tuple(names), tuple(peer.get("x509_pem_cert", ())))


@lru_cache(CERTIFICATES)
def _parse(
    uris: tuple[bytes, ...], names: tuple[bytes, ...], certificates: tuple[bytes, ...]
) -> tuple[Holder | None, PeerCertificate | None]:
    """The same, once for each certificate and not several times for each call; nothing of validity."""
    found = parse_holder(_texts(uris), _texts(names))
    if found is None or len(certificates) != 1:
        return None, None
    # gRPC ends a name at its first NUL. The certificate itself has the whole name, after type and length.
    uri = identity_uri(found.cluster, found.role, found.name).encode()
    if bytes((URI_TAG, len(uri))) + uri not in der(certificates[0]):
        return None, None
    holder = f"the {found.role.value} {quote(found.name, 70)}"
    try:
        return found, PeerCertificate(*fingerprint_and_end(certificates[0]), holder)
    except ValueError:
        return found, None


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]
