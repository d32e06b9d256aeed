"""Who is calling.

A caller is known by three pieces of call metadata - the channel - and never by anything in a message:
its name, a token that only the holder of the run's secret can make for that name, and a session that tells
two processes with the same name apart.

What this protects against: a worker cannot speak for another worker, nor invent a name to get a second
vote, and two processes that were given the same name by mistake do not both vote.

What it does not protect against: until the channel is encrypted (TLS comes with a later release) token and
session cross the network in clear text. Whoever can read the traffic can take a worker's place, and whoever
can alter it can alter vectors. Run it over loopback or inside a network that you trust.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from varangian.protos.headers import SESSION, TOKEN, WORKER

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NONCE = re.compile(r"[0-9a-f]{32}")
SECRET_BYTES = 16
"""The least length of a secret."""

Metadata = Iterable[tuple[str, str | bytes]]


class Stranger(Enum):
    """Why a caller is not let in: stable code and what should be."""

    UNIDENTIFIED = f"A call should carry {WORKER}, {TOKEN} and {SESSION}, each once."
    UNKNOWN_WORKER = "The name of a worker should be one that this run was started with."
    BAD_TOKEN = "The token should be the one that this run made for this name."
    NOT_JOINED = "A worker should join before it pulls or pushes."
    SESSION_TAKEN = "One process at a time should speak for a worker."
    SESSION_LOST = "A process should stop when another one has taken its worker's name over."


class IdentityError(Exception):
    """The caller is not who it should be."""

    def __init__(self, code: Stranger, found: str) -> None:
        self.code = code
        super().__init__(f"{code.value} {found}")


@dataclass
class Claim:
    """The process that speaks for a name."""

    session: str
    seen: float
    """When it last called, in seconds of the roster's clock."""


class Roster:
    """The workers of one run, and the process that speaks for each.

    Args:
        names: every worker that may take part.
        secret: what tokens are made with; at least 16 bytes, never sent.
        silence: seconds without a sign of life after which another process may take a name over.
        clock: seconds from any start.
    """

    def __init__(
        self,
        names: Iterable[str],
        secret: bytes,
        *,
        silence: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"A secret should have at least {SECRET_BYTES} bytes. Found {len(secret)}.")
        self.names = tuple(sorted(names))
        for name in self.names:
            if not NAME.fullmatch(name):
                rule = "letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"
                raise ValueError(f"The name of a worker should be {rule}. Found {name!r:.100}.")
        self._tokens = {name: make_token(name, secret).encode() for name in self.names}
        if len(self._tokens) != len(self.names):
            raise ValueError(f"Worker names should be unique. Found {', '.join(self.names)}.")
        self._silence = silence
        self._clock = clock
        self._claims: dict[str, Claim] = {}

    def token(self, name: str) -> str:
        """What the process of this worker has to show: HMAC-SHA256 in hexadecimal."""
        return self._tokens[name].decode()

    @property
    def joined(self) -> frozenset[str]:
        """The names that some process has spoken for."""
        return frozenset(self._claims)

    def presumed(self, metadata: Metadata) -> str:
        """Who a caller says it is, for the log: believed by nobody, and safe to print."""
        given = dict(metadata).get(WORKER)
        return given if isinstance(given, str) and given in self._tokens else "a stranger"

    def authenticate(self, metadata: Metadata) -> str:
        """The name of a caller that has the token for it, joined or not.

        Raises:
            IdentityError: when it is nobody.
        """
        return self._credentials(metadata)[0]

    def identify(self, metadata: Metadata) -> str:
        """The name of a caller that has joined.

        Raises:
            IdentityError: when it is nobody, or another process speaks for this name now.
        """
        name, session = self._credentials(metadata)
        claim = self._claims.get(name)
        if claim is None:
            raise IdentityError(Stranger.NOT_JOINED, f"{name} has not.")
        if claim.session != session:
            raise IdentityError(Stranger.SESSION_LOST, f"Another process speaks for {name} now.")
        claim.seen = self._clock()
        return name

    def seen(self, name: str) -> None:
        """A sign of life from the process that speaks for a name, other than a new call."""
        self._claims[name].seen = self._clock()

    def claim(self, metadata: Metadata) -> str:
        """The name of a caller that joins; from now on its session speaks for the name.

        Raises:
            IdentityError: when it is nobody, or another process that is not silent speaks for this name.
        """
        name, session = self._credentials(metadata)
        now, held = self._clock(), self._claims.get(name)
        if held is not None and held.session != session and now - held.seen <= self._silence:
            found = f"Another process spoke for {name} {now - held.seen:.1f} s ago; stop one of them, "
            raise IdentityError(
                Stranger.SESSION_TAKEN, f"{found}or wait {self._silence:g} s after it has ended."
            )
        self._claims[name] = Claim(session, now)
        return name

    def _credentials(self, metadata: Metadata) -> tuple[str, str]:
        """Name and session, once the token is right."""
        found: dict[str, str] = {}
        for key, value in metadata:
            if key not in (WORKER, TOKEN, SESSION):
                continue
            if key in found or not isinstance(value, str):
                raise IdentityError(Stranger.UNIDENTIFIED, f"Found {key} twice, or in bytes.")
            found[key] = value
        if len(found) < 3 or not NONCE.fullmatch(found[SESSION]):
            raise IdentityError(Stranger.UNIDENTIFIED, "Start this worker through `varangian worker`.")
        name = found[WORKER]
        token = self._tokens.get(name)
        if token is None:
            raise IdentityError(Stranger.UNKNOWN_WORKER, f"Found {name!r:.70}.")
        if not hmac.compare_digest(token, found[TOKEN].encode()):
            raise IdentityError(
                Stranger.BAD_TOKEN, f"Found another for {name}; is it the token of an older run?"
            )
        return name, found[SESSION]


def make_token(name: str, secret: bytes) -> str:
    return hmac.digest(secret, b"varangian worker token\n" + name.encode(), "sha256").hex()
