"""Identity of callers, and which workers are there.

A caller is known by its channel, never by anything in a message. With TLS its name is the one on its
certificate. Without, it shows a token in the call metadata that only the holder of the run's secret can
make for that name. A session, in the metadata too, tells two processes with the same name apart.

What both protect against: a worker cannot speak for another worker, nor invent a name to get a second vote,
and two processes that were given the same name by mistake do not both vote.

What only TLS protects against: without it token and session cross the network in clear text. Whoever can
read the traffic can take a worker's place, and whoever can alter it can alter vectors.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import NAME
from varangian.protos.identity.certificate import ShownCertificate
from varangian.protos.metadata_keys import SESSION, TOKEN, WORKER
from varangian.protos.refusals import Refusal
from varangian.protos.text import quote

NONCE = re.compile(r"[0-9a-f]{32}")
GRACE = 2.0
"""Seconds in which a worker whose connections have closed may come back before it counts as gone."""
LOGGED = 300
"""Characters of the sentence in the log about a caller that pretends to be another."""
SECRET_BYTES = 16
"""The least length of a secret."""

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
Peer: TypeAlias = Mapping[str, Iterable[bytes]]
"""What the channel proves about the other end; gRPC calls it the authentication context."""
UNPROVEN: Peer = {}
"""A channel that proves nothing: one without TLS."""

log = logging.getLogger(__name__)


SUSPICIOUS = frozenset(
    {
        Refusal.BAD_TOKEN,
        Refusal.MISNAMED,
        Refusal.ROLE,
        Refusal.OTHER_CLUSTER,
        Refusal.REVOKED,
    }
)
"""What honest workers do not come by: each is a line in the log, once for each name."""


class CertificateReader(Protocol):
    """Reads names off certificates."""

    def named(self, peer: Peer) -> str | None:
        """The worker on a certificate, valid or not, if there is one."""
        ...

    def worker(self, peer: Peer) -> str:
        """The name of a worker; raises Refused for everyone else."""
        ...

    def admit(self, peer: Peer) -> str:
        """Whose valid certificate, of any role, this is; raises Refused when it is none."""
        ...

    def shown(self, peer: Peer) -> ShownCertificate | None:
        """The certificate of a caller, if there is one that says who it is."""
        ...

    def outdated(self, shown: ShownCertificate) -> Refused | None:
        """Why a certificate that was taken counts no longer; None while it does."""
        ...


@dataclass
class Session:
    """The process that speaks for a name."""

    session: str
    seen: float
    """When it last called, in seconds of the roster's clock."""
    calls: int = 0
    """How many of its calls are open."""
    stays: bool = False
    """Whether it keeps one open for as long as it lives: without any, it has gone."""
    left: float = float("-inf")
    """When the last of its calls ended."""
    shown: ShownCertificate | None = None
    """The certificate that its last call came with; None without TLS."""

    def gone(self, now: float) -> bool:
        """Whether its connections are known to be closed, and not only broken for a moment."""
        return self.stays and not self.calls and now - max(self.left, self.seen) > GRACE


class Sessions:
    """The workers of one run, and the process that speaks for each.

    Args:
        names: every worker that may take part.
        secret: what tokens are made with; at least 16 bytes, never sent. None when there is a doorman.
        doorman: who reads certificates; then tokens count for nothing.
        silence: seconds without a sign of life after which another process may take a name over.
        clock: seconds from any start.
    """

    def __init__(
        self,
        names: Iterable[str],
        secret: bytes | None,
        *,
        certificate_reader: CertificateReader | None = None,
        silence: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = tuple(sorted(names))
        for name in self.names:
            if not NAME.fullmatch(name):
                rule = "letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"
                raise ValueError(f"The name of a worker should be {rule}. Found {name!r:.100}.")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Worker names should be unique. Found {', '.join(self.names)}.")
        if certificate_reader is None and len(secret or b"") < SECRET_BYTES:
            raise ValueError(
                f"A secret should have at least {SECRET_BYTES} bytes. Found {len(secret or b'')}."
            )
        self._tokens = {name: make_token(name, secret).encode() for name in self.names} if secret else {}
        self._certificate_reader = certificate_reader
        self._silence = silence
        self._clock = clock
        self._claims: dict[str, Session] = {}
        self._suspected = set[tuple[str, Refusal]]()

    def token(self, name: str) -> str:
        """What the process of this worker has to show: HMAC-SHA256 in hexadecimal."""
        return self._tokens[name].decode()

    @property
    def joined(self) -> frozenset[str]:
        """The names that some process has spoken for."""
        return frozenset(self._claims)

    def session(self, name: str) -> str | None:
        """That of the process that speaks for a name, if there is one."""
        claim = self._claims.get(name)
        return None if claim is None else claim.session

    @property
    def present(self) -> frozenset[str]:
        """The names whose process is there now: it has a call open, or was heard of a moment ago."""
        now = self._clock()
        return frozenset(name for name, claim in self._claims.items() if self._is_there(claim, now))

    def _is_there(self, claim: Session, now: float) -> bool:
        return not claim.gone(now) and (claim.calls > 0 or now - claim.seen <= self._silence)

    def presumed(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """Who a caller says it is, for the log: believed by nobody, and safe to print."""
        given = (
            dict(metadata).get(WORKER)
            if self._certificate_reader is None
            else self._certificate_reader.named(peer)
        )
        return given if isinstance(given, str) and given in self.names else "a stranger"

    def admit(self, peer: Peer = UNPROVEN) -> None:
        """Let a caller ask how the run is going: without TLS anyone, with TLS every valid certificate.

        Raises:
            Refused: when its certificate is not.
        """
        if self._certificate_reader is not None:
            self._certificate_reader.admit(peer)

    def holder(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str | None:
        """Who a caller has proved to be, of this run or not; None when it has proved nothing."""
        try:
            if self._certificate_reader is None:
                return self._by_token(_headers(metadata))
            return self._certificate_reader.admit(peer)
        except Refused:
            return None

    def authenticate(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that has proved it, joined or not.

        Raises:
            Refused: when it is nobody.
        """
        return self._credentials(metadata, peer)[0]

    def identify(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that has joined.

        Raises:
            Refused: when it is nobody, or another process speaks for this name now.
        """
        name, session = self._credentials(metadata, peer)
        claim = self._claims.get(name)
        if claim is None:
            raise Refused(Refusal.NOT_JOINED, f"{name} has not.")
        if claim.session != session:
            raise Refused(Refusal.SESSION_LOST, f"Another process speaks for {name} now.")
        claim.seen, claim.shown = self._clock(), self.shown(peer)
        return name

    def seen(self, name: str) -> None:
        """A sign of life from the process that speaks for a name, other than a new call."""
        if (claim := self._claims.get(name)) is not None:
            claim.seen = self._clock()

    def shown(self, peer: Peer) -> ShownCertificate | None:
        """The certificate of a caller; None without TLS."""
        return None if self._certificate_reader is None else self._certificate_reader.shown(peer)

    def outdated(self, shown: ShownCertificate | None) -> Refused | None:
        """Why what a caller has shown counts no longer; None while it does."""
        return (
            None
            if self._certificate_reader is None or shown is None
            else self._certificate_reader.outdated(shown)
        )

    def expel(self) -> list[str]:
        """Workers whose process showed a certificate that is revoked by now: nobody speaks for them."""
        found = [name for name, claim in self._claims.items() if self.is_revoked(claim.shown)]
        for name in found:
            del self._claims[name]
        return found

    def is_revoked(self, shown: ShownCertificate | None) -> bool:
        """Whether a certificate was revoked. One that has expired was not."""
        error = self.outdated(shown)
        return error is not None and error.refusal is Refusal.REVOKED

    @contextmanager
    def calling(self, name: str, *, stays: bool = False) -> Generator[None]:
        """For as long as a call of the process that speaks for a name is open.

        Args:
            name: of the caller.
            stays: whether the call is to be open for as long as the process lives.
        """
        claim = self._claims[name]
        claim.calls += 1
        claim.stays = claim.stays or stays
        try:
            yield
        finally:
            claim.calls -= 1
            claim.left = self._clock()

    def claim(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that joins; from now on its session speaks for the name.

        Another session keeps the name while it lives: until all its connections are closed, or it was
        silent for a while.

        Raises:
            Refused: when it is nobody, or another process speaks for this name.
        """
        name, session = self._credentials(metadata, peer)
        now, held = self._clock(), self._claims.get(name)
        if held is not None and held.session == session:
            held.seen, held.shown = now, self.shown(peer)
            return name
        if held is not None and now - held.seen <= self._silence and not held.gone(now):
            found = f"Another process spoke for {name} {now - held.seen:.1f} s ago; stop one of them, "
            raise Refused(Refusal.SESSION_TAKEN, f"{found}or wait {self._silence:g} s after it has ended.")
        self._claims[name] = Session(session, now, shown=self.shown(peer))
        return name

    def _credentials(self, metadata: Metadata, peer: Peer) -> tuple[str, str]:
        """Name and session, once the name is proved."""
        found = _headers(metadata)
        try:
            name = (
                self._by_token(found)
                if self._certificate_reader is None
                else self._by_certificate(found, peer)
            )
        except Refused as error:
            self._suspect(error, metadata, peer)
            raise
        if not NONCE.fullmatch(found.get(SESSION, "")):
            raise Refused(Refusal.UNIDENTIFIED, "Start this worker through `varangian worker`.")
        return name, found[SESSION]

    def _by_token(self, found: Mapping[str, str]) -> str:
        if WORKER not in found or TOKEN not in found:
            raise Refused(Refusal.UNIDENTIFIED, "Start this worker through `varangian worker`.")
        name = found[WORKER]
        token = self._tokens.get(name)
        if token is None:
            raise Refused(Refusal.UNKNOWN_WORKER, f"Found {quote(name, 70)}.")
        if not hmac.compare_digest(token, found[TOKEN].encode()):
            raise Refused(Refusal.BAD_TOKEN, f"Found another for {name}; was it made with another secret?")
        return name

    def _by_certificate(self, found: Mapping[str, str], peer: Peer) -> str:
        assert self._certificate_reader is not None
        name = self._certificate_reader.worker(peer)
        if found.get(WORKER, name) != name:
            raise Refused(
                Refusal.MISNAMED,
                f"Found {quote(found[WORKER], 70)} with the certificate of {name}.",
            )
        if name not in self.names:
            raise Refused(Refusal.UNKNOWN_WORKER, f"Found the certificate of {quote(name, 70)}.")
        return name

    def _suspect(self, error: Refused, metadata: Metadata, peer: Peer) -> None:
        """One line in the log for what only somebody who pretends comes by."""
        who = self.presumed(metadata, peer)
        if error.refusal in SUSPICIOUS and (who, error.refusal) not in self._suspected:
            self._suspected.add((who, error.refusal))
            log.warning("security: %s from %s: %s", error.refusal.code, who, quote(str(error), LOGGED))


def _headers(metadata: Metadata) -> dict[str, str]:
    """What the metadata says about the caller, each once and as text."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key not in (WORKER, TOKEN, SESSION):
            continue
        if key in found or not isinstance(value, str):
            raise Refused(Refusal.UNIDENTIFIED, f"Found {key} twice, or in bytes.")
        found[key] = value
    return found


def make_token(name: str, secret: bytes) -> str:
    return hmac.digest(secret, b"varangian worker token\n" + name.encode(), "sha256").hex()
