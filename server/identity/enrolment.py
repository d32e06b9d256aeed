"""Enrolment: invitations of new workers, their certificate requests, and the certificates made for them.

An operator invites a name and gives the token to whoever starts that worker. The worker asks with the
token and a certificate signing request; the first key with which a token comes is the only one that it is
good for. The operator fetches the request, signs it where the authority is, and brings the certificate, and
the worker gets it when it asks again: as often as it asks, since an answer may be lost.

What the server knows of this is in one file, which only its owner can read and which outlives the server.
It holds a digest of each token, and nothing that could sign.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from varangian.files import write_atomically
from varangian.pki import x509
from varangian.pki.authority import PRIVATE, AuthorityError, check_name
from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import Role, identity_uri
from varangian.protos.identity.enrolment_token import EnrolmentToken, TokenError
from varangian.protos.refusals import Refusal
from varangian.protos.text import quote
from varangian.server.identity.tls import Security
from varangian.structured_logs import event

log = logging.getLogger(__name__)

FILE = "enrolment.json"
LASTS = 24 * 3600.0
"""Seconds for which a token is good."""
MOST = 10_000
"""Invitations at the same time."""
REQUEST_LIMIT = 4 << 10
"""Bytes of a request; one of `varangian join` has 400 to 500."""


@dataclass(frozen=True)
class Invitation:
    """The invitation of a worker, and what has come of it."""

    name: str
    token: str
    """The digest of its token."""
    by: str
    """The operator who has made it."""
    ends: float
    """Seconds since 1970 until which the token is good."""
    request: str = ""
    """The certificate signing request that came with the token, in PEM."""
    key: str = ""
    """SHA-256 of the public key in it, in hexadecimal."""
    certificate: str = ""
    """The certificate that was made for it, in PEM."""


class Enrolment:
    """The enrolments of one run.

    Args:
        folder: of the run; a file in it is read if there is one.
        security: the server's bundle, which names the cluster and has its authority.
        members: the names of the workers of the run just now.
        now: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        security: Security,
        members: Callable[[], Collection[str]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = folder / FILE
        self._security = security
        self._members = members
        self._now = now
        self._invitations = {one.name: one for one in _read(self._path)}

    @property
    def authority(self) -> bytes:
        """`ca.pem` of the server, which anybody may see."""
        return self._security.renewal.bundle.ca

    def invite(self, name: str, by: str) -> str:
        """Invite a worker; returns its token. An earlier one of the same name is void.

        Raises:
            Refused: it cannot be invited.
        """
        try:
            check_name(name)
        except AuthorityError as error:
            raise Refused(Refusal.ENROLMENT, str(error)) from None
        self._check_stranger(name)
        now = self._now()
        kept = {one.name: one for one in self._invitations.values() if one.ends > now}
        if len(kept) >= MOST:
            raise Refused(Refusal.ENROLMENT, f"Found {len(kept)} invitations already.")
        token = EnrolmentToken.make(name, self.authority)
        self._invitations = kept
        self._keep(Invitation(name, token.digest, by, now + LASTS))
        log.warning(
            "security: the operator %s has invited %s",
            by,
            name,
            extra=event("invited", operator=by, name=name),
        )
        return token.text

    def ask(self, text: str, name: str, request: bytes) -> bytes:
        """A worker asks for its certificate; empty as long as nobody has signed one.

        Args:
            text: its token.
            name: that it wants.
            request: a certificate signing request, in PEM.

        Raises:
            Refused: it gets none.
        """
        invitation = self._invited(text)
        if name != invitation.name:
            raise Refused(
                Refusal.ENROLMENT, f"Found the token of {invitation.name} with the name {quote(name, 70)}."
            )
        key = _checked_key(request, invitation.name)
        if not invitation.key:
            self._check_stranger(invitation.name)
            invitation = replace(invitation, request=request.decode("ascii"), key=key)
            self._keep(invitation)
            log.warning(
                "security: %s asks for a certificate for the key %s",
                invitation.name,
                key,
                extra=event("certificate_requested", name=invitation.name, key=key),
            )
        elif not hmac.compare_digest(invitation.key, key):
            raise Refused(
                Refusal.ENROLMENT,
                f"Found that of {invitation.name}, which was used with the key {invitation.key}. "
                "If that is not a key of yours, tell the operator.",
            )
        return invitation.certificate.encode()

    def waiting(self) -> list[dict[str, Any]]:
        """Those who are invited and have no certificate yet, for a listing."""
        now = self._now()
        return [
            {
                "name": one.name,
                "state": "waiting" if one.key else "invited",
                "fingerprint": one.key,
                "until": one.ends,
            }
            for one in sorted(self._invitations.values(), key=lambda one: one.name)
            if not one.certificate and one.ends > now
        ]

    def request_of(self, name: str) -> bytes:
        """The certificate signing request of a name that waits, in PEM; empty if it does not."""
        found = self._invitations.get(name)
        waits = found is not None and not found.certificate and found.ends > self._now()
        return found.request.encode() if found is not None and waits else b""

    def check(self, name: str, certificate: bytes) -> None:
        """Check that a certificate answers the request of this name.

        Raises:
            Refused: it does not, or nobody waits for it.
        """
        request = self.request_of(name)
        if not request:
            raise Refused(Refusal.ENROLMENT, f"Found no request of {quote(name, 70)} that waits.")
        bundle = self._security.renewal.bundle
        try:
            uri = identity_uri(bundle.cluster, Role.WORKER, name)
            x509.check_answer(certificate, request, bundle.ca, uri)
        except x509.RequestError as error:
            raise Refused(Refusal.ENROLMENT, f"The certificate for {name} {error}.") from None

    def deliver(self, name: str, certificate: bytes) -> None:
        """Hand a certificate to the worker of this name when it asks again.

        Raises:
            Refused: as `check` does.
        """
        self.check(name, certificate)
        self._keep(replace(self._invitations[name], certificate=certificate.decode("ascii")))

    def _invited(self, text: str) -> Invitation:
        """The invitation that a token belongs to."""
        try:
            token = EnrolmentToken.parse(text)
            found = self._invitations.get(token.name)
            if found is not None and hmac.compare_digest(found.token, token.digest):
                if found.ends > self._now():
                    return found
                raise Refused(Refusal.ENROLMENT, f"That of {found.name} has expired.")
        except TokenError:
            pass
        raise Refused(
            Refusal.ENROLMENT, "Found one that this server has not given out, or has replaced by another."
        )

    def _check_stranger(self, name: str) -> None:
        if name in self._members():
            raise Refused(
                Refusal.ENROLMENT,
                f"{name} is a worker of this run already; its certificate is renewed with "
                "`varangian certs request` and `varangian certs sign`.",
            )

    def _keep(self, invitation: Invitation) -> None:
        """Put an invitation in the place of that of the same name, on the disk too."""
        self._invitations[invitation.name] = invitation
        listed = [asdict(one) for one in self._invitations.values()]
        content = json.dumps({"invitations": listed}, indent=1).encode()
        try:
            # Some milliseconds of the event loop, once for each step of an enrolment.
            write_atomically(self._path, content, PRIVATE)
        except OSError as error:
            log.error(
                "%s cannot be written, and a restart forgets it: %s",
                self._path,
                error.strerror,
                extra=event("invitations_not_kept"),
            )


def _checked_key(request: bytes, name: str) -> str:
    """The fingerprint of the key in a request for this name."""
    if len(request) > REQUEST_LIMIT:
        raise Refused(
            Refusal.ENROLMENT, f"Found a request of {len(request)} bytes where {REQUEST_LIMIT} are read."
        )
    try:
        key, said = x509.key_fingerprint(request), x509.name_of_request(request)
    except x509.RequestError as error:
        raise Refused(Refusal.ENROLMENT, f"The request {error}.") from None
    if said != name:
        raise Refused(Refusal.ENROLMENT, f"Found a request of {quote(said, 70)} with the token of {name}.")
    return key


def _read(path: Path) -> list[Invitation]:
    """The invitations in a file; none where it is not there, or damaged."""
    try:
        return [Invitation(**one) for one in json.loads(path.read_bytes())["invitations"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.error(
            "%s cannot be read, so earlier invitations are void: %s",
            path,
            error,
            extra=event("invitations_lost"),
        )
        return []
