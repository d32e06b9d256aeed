"""Sessions: authentication of callers, and the one process that speaks for each worker.

Identity comes from the channel, never from a message. With TLS the name of a caller is that on its
certificate. Without TLS it sends a token in the call metadata, which only the holder of the run's secret
can make for that name. A session id, also in the metadata, tells two processes with the same name apart.

Both keep a worker from speaking for another one or from inventing a name to get a second vote, and two
processes that were given one name by mistake from voting twice. Only TLS protects token and session id on
the network: without it whoever can read the traffic can take a worker's place, and whoever can alter it can
alter vectors.
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
from varangian.protos.identity.certificate import PeerCertificate
from varangian.protos.metadata_keys import SESSION, TOKEN, WORKER
from varangian.protos.refusals import Refusal
from varangian.protos.text import quote
from varangian.structured_logs import event

NONCE = re.compile(r"[0-9a-f]{32}")
RECONNECT_GRACE = 2.0
"""Seconds after its last connection has closed for which a process may come back under its name."""
LOGGED = 300
"""Characters of the sentence in the log about a suspicious caller."""
SECRET_BYTES = 16
"""The least length of a secret."""

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
Peer: TypeAlias = Mapping[str, Iterable[bytes]]
"""The authentication context of gRPC: facts about the other end that the channel proves."""
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
"""Refusals that honest workers do not cause: each is a line in the log, once for each name."""


class CertificateReader(Protocol):
    """Reads names off certificates."""

    def worker_name(self, peer: Peer) -> str | None:
        """The worker named on a certificate, whether that is valid or not; None if there is none."""
        ...

    def worker(self, peer: Peer) -> str:
        """The name of a worker with a valid certificate; raises Refused for everyone else."""
        ...

    def operator(self, peer: Peer) -> str:
        """The name of an operator with a valid certificate; raises Refused for everyone else."""
        ...

    def admit(self, peer: Peer) -> str:
        """The holder of a valid certificate of any role; raises Refused for everyone else."""
        ...

    def certificate(self, peer: Peer) -> PeerCertificate | None:
        """The certificate of a caller; None if it names nobody."""
        ...

    def why_invalid(self, certificate: PeerCertificate) -> Refused | None:
        """Why a certificate that was accepted is not valid any more; None while it is."""
        ...


@dataclass
class Session:
    """The process that speaks for a worker."""

    id: str
    last_seen: float
    """Time of its last call, on the clock of the sessions."""
    open_calls: int = 0
    persistent: bool = False
    """Whether it keeps a call open for as long as it lives: without one it has ended."""
    last_call_ended: float = float("-inf")
    certificate: PeerCertificate | None = None
    """The certificate of its last call; None without TLS."""

    def has_ended(self, now: float, grace: float = RECONNECT_GRACE) -> bool:
        """Whether its connections are known to be closed, for longer than `grace` seconds."""
        return self.persistent and self.silence(now) > grace

    def silence(self, now: float) -> float:
        """Seconds since it was known to be there."""
        return 0.0 if self.open_calls else now - max(self.last_call_ended, self.last_seen)


class Sessions:
    """The workers of one run, which may change, and the session of each.

    Args:
        names: every worker that may take part.
        secret: what tokens are made with; at least 16 bytes, never sent. None with a certificate reader.
        certificate_reader: authenticates callers by certificate; tokens then count for nothing.
        timeout: seconds without a sign of life after which another process may take a name over.
        absent_after: seconds after the last connection of a worker has closed for which it is still
            `present`; its name is free for another process of it sooner.
        clock: seconds from any start.
    """

    def __init__(
        self,
        names: Iterable[str],
        secret: bytes | None,
        *,
        certificate_reader: CertificateReader | None = None,
        timeout: float = 10.0,
        absent_after: float = RECONNECT_GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = tuple(sorted(names))
        for name in self.names:
            _check_name(name)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Worker names should be unique. Found {', '.join(self.names)}.")
        if certificate_reader is None and len(secret or b"") < SECRET_BYTES:
            raise ValueError(
                f"A secret should have at least {SECRET_BYTES} bytes. Found {len(secret or b'')}."
            )
        self._tokens = {name: make_token(name, secret).encode() for name in self.names} if secret else {}
        self._certificate_reader = certificate_reader
        self._timeout = timeout
        self._absent_after = absent_after
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._departed: dict[str, str] = {}
        """Workers that have left the run, and how. Their processes may still be told so."""
        self._expelled: dict[str, str] = {}
        """Workers of which no call is answered any more, and why."""
        self._logged = set[tuple[str, Refusal]]()

    def token(self, name: str) -> str:
        """The token that the process of this worker has to send: HMAC-SHA256 in hexadecimal."""
        return self._tokens[name].decode()

    def add(self, name: str) -> None:
        """Let a worker join that was not one of the run, or had left it; by certificate alone.

        Raises:
            ValueError: a name that no worker can have.
        """
        _check_name(name)
        self.names = tuple(sorted({*self.names, name}))
        self._departed.pop(name, None)
        self._expelled.pop(name, None)

    def depart(self, name: str, how: str) -> None:
        """A worker is none of the run any more; the process that speaks for it may still hear of it."""
        self.names = tuple(other for other in self.names if other != name)
        if name not in self._expelled:
            self._departed[name] = how

    def expel(self, name: str, why: str) -> None:
        """End the session of a worker, and refuse all of its calls from now on."""
        self._expelled[name] = why
        self._sessions.pop(name, None)

    def has_departed(self, name: str) -> bool:
        """Whether a worker has left the run, of its own will or when it was drained."""
        return name in self._departed

    def why_expelled(self, name: str) -> Refused | None:
        """Why no call of this worker is answered; None if it was not expelled."""
        why = self._expelled.get(name)
        return None if why is None else Refused(Refusal.EXPELLED, f"Found {name}: {why}.")

    @property
    def joined(self) -> frozenset[str]:
        """The workers that some process has joined as."""
        return frozenset(self._sessions)

    def session(self, name: str) -> str | None:
        """The id of the session of a worker; None if it has none."""
        session = self._sessions.get(name)
        return None if session is None else session.id

    @property
    def present(self) -> frozenset[str]:
        """The workers that are waited for: their process is connected, or was not long ago."""
        return self._alive(self._absent_after)

    @property
    def connected(self) -> frozenset[str]:
        """The workers whose process is connected: it has a call open, or made one a moment ago."""
        return self._alive(RECONNECT_GRACE)

    def _alive(self, grace: float) -> frozenset[str]:
        """The workers whose process was there in the last `grace` seconds."""
        now, silence = self._clock(), max(self._timeout, grace)
        return frozenset(
            name
            for name, session in self._sessions.items()
            if session.silence(now) <= silence and not session.has_ended(now, grace)
        )

    def silences(self) -> dict[str, float]:
        """Seconds since the process of each worker was known to be there, of all that have joined."""
        now = self._clock()
        return {name: session.silence(now) for name, session in self._sessions.items()}

    def certificate_ends(self) -> dict[str, float]:
        """The end of the certificate of the last call of each worker, in seconds since 1970."""
        found = {name: session.certificate for name, session in self._sessions.items()}
        return {name: certificate.ends for name, certificate in found.items() if certificate is not None}

    def claimed_name(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The worker that a caller claims to be, for the log: not verified, and safe to print."""
        given = (
            dict(metadata).get(WORKER)
            if self._certificate_reader is None
            else self._certificate_reader.worker_name(peer)
        )
        return given if isinstance(given, str) and given in self.names else "a stranger"

    def admit(self, peer: Peer = UNPROVEN) -> None:
        """Admit a caller to the status of the run: without TLS anyone, with TLS every valid certificate.

        Raises:
            Refused: its certificate is not valid.
        """
        if self._certificate_reader is not None:
            self._certificate_reader.admit(peer)

    def admit_operator(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """Admit an operator to the members of the run; returns its name.

        Raises:
            Refused: there is no TLS, or the caller's certificate is not a valid one of an operator.
        """
        try:
            if self._certificate_reader is None:
                raise Refused(Refusal.UNCERTIFIED, "Found no TLS.")
            return self._certificate_reader.operator(peer)
        except Refused as error:
            self._log_suspicious(error, metadata, peer)
            raise

    def proven_name(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str | None:
        """The name that a caller has proved, of this run or not; None when it has proved none."""
        try:
            if self._certificate_reader is None:
                return self._by_token(_headers(metadata))
            return self._certificate_reader.admit(peer)
        except Refused:
            return None

    def authenticate(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that has proved it, joined or not.

        Raises:
            Refused: it has not proved a name of this run.
        """
        return self._credentials(metadata, peer)[0]

    def identify(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that has joined.

        Raises:
            Refused: it has not proved a name of this run, or is not the process that speaks for it.
        """
        name, session_id = self._credentials(metadata, peer)
        session = self._sessions.get(name)
        if session is None:
            raise Refused(Refusal.NOT_JOINED, f"{name} has not.")
        if session.id != session_id:
            raise Refused(Refusal.SESSION_LOST, f"Another process speaks for {name} now.")
        session.last_seen, session.certificate = self._clock(), self.certificate(peer)
        return name

    def touch(self, name: str) -> None:
        """A sign of life of the process that speaks for a worker, other than a new call."""
        if (session := self._sessions.get(name)) is not None:
            session.last_seen = self._clock()

    def certificate(self, peer: Peer) -> PeerCertificate | None:
        """The certificate of a caller; None without TLS."""
        return None if self._certificate_reader is None else self._certificate_reader.certificate(peer)

    def worker_name(self, peer: Peer) -> str | None:
        """The worker named on the certificate of a caller; None if there is none, and without TLS."""
        return None if self._certificate_reader is None else self._certificate_reader.worker_name(peer)

    def fingerprint(self, name: str) -> str | None:
        """That of the certificate of the last call of a worker; None if there is none."""
        session = self._sessions.get(name)
        certificate = None if session is None else session.certificate
        return None if certificate is None else certificate.fingerprint

    def need_certificates(self) -> None:
        """See that callers prove who they are by certificates.

        Raises:
            Refused: this server has no TLS.
        """
        if self._certificate_reader is None:
            raise Refused(Refusal.UNCERTIFIED, "This server has no TLS.")

    def why_invalid(self, certificate: PeerCertificate | None) -> Refused | None:
        """Why a certificate that was accepted is not valid any more; None while it is, and without TLS."""
        return (
            None
            if self._certificate_reader is None or certificate is None
            else self._certificate_reader.why_invalid(certificate)
        )

    def drop_revoked(self) -> list[str]:
        """End the sessions whose certificate was revoked; returns their workers."""
        found = [name for name, one in self._sessions.items() if self.is_revoked(one.certificate)]
        for name in found:
            del self._sessions[name]
        return found

    def is_revoked(self, certificate: PeerCertificate | None) -> bool:
        """Whether a certificate was revoked. One that has expired was not."""
        error = self.why_invalid(certificate)
        return error is not None and error.refusal is Refusal.REVOKED

    @contextmanager
    def calling(self, name: str, *, persistent: bool = False) -> Generator[None]:
        """While a call of the process that speaks for a worker is open.

        Args:
            name: of the worker.
            persistent: whether the call is to be open for as long as the process lives.
        """
        session = self._sessions[name]
        session.open_calls += 1
        session.persistent = session.persistent or persistent
        try:
            yield
        finally:
            session.open_calls -= 1
            session.last_call_ended = self._clock()

    def claim(self, metadata: Metadata, peer: Peer = UNPROVEN) -> str:
        """The name of a caller that joins; from now on its session speaks for the name.

        An earlier session keeps the name while it lives: until all its connections are closed, or it was
        silent for the timeout.

        Raises:
            Refused: it has not proved a name of this run, or another process speaks for it.
        """
        name, session_id = self._credentials(metadata, peer)
        now, held = self._clock(), self._sessions.get(name)
        if name in self._departed and (held is None or held.id != session_id):
            raise Refused(Refusal.EXPELLED, f"Found {name}: {self._departed[name]}.")
        if held is not None and held.id == session_id:
            held.last_seen, held.certificate = now, self.certificate(peer)
            return name
        if held is not None and now - held.last_seen <= self._timeout and not held.has_ended(now):
            found = f"Another process spoke for {name} {now - held.last_seen:.1f} s ago; stop one of them, "
            raise Refused(Refusal.SESSION_TAKEN, f"{found}or wait {self._timeout:g} s after it has ended.")
        self._sessions[name] = Session(session_id, now, certificate=self.certificate(peer))
        return name

    def _credentials(self, metadata: Metadata, peer: Peer) -> tuple[str, str]:
        """Name and session id, once the name is proved."""
        found = _headers(metadata)
        try:
            name = (
                self._by_token(found)
                if self._certificate_reader is None
                else self._by_certificate(found, peer)
            )
        except Refused as error:
            self._log_suspicious(error, metadata, peer)
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
        if error := self.why_expelled(name):
            raise error
        if name not in self.names and name not in self._departed:
            raise Refused(Refusal.UNKNOWN_WORKER, f"Found the certificate of {quote(name, 70)}.")
        return name

    def _log_suspicious(self, error: Refused, metadata: Metadata, peer: Peer) -> None:
        """Log a refusal that honest workers do not cause, once for each name."""
        who = self.claimed_name(metadata, peer)
        if error.refusal in SUSPICIOUS and (who, error.refusal) not in self._logged:
            self._logged.add((who, error.refusal))
            log.warning(
                "security: %s from %s: %s",
                error.refusal.code,
                who,
                quote(str(error), LOGGED),
                extra=event("suspicious_call", caller=who, code=error.refusal.code),
            )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        rule = "letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"
        raise ValueError(f"The name of a worker should be {rule}. Found {name!r:.100}.")


def _headers(metadata: Metadata) -> dict[str, str]:
    """The headers about the caller, each once and as text."""
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
