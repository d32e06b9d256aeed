"""Enrolment tokens: what an operator gives to a new worker, so that it can ask for its certificate.

A token is base32 of the name of the worker, 20 random bytes, and the first 10 bytes of SHA-256 of the
server's `ca.pem`. The name says for whom it is, the random bytes prove it to the server, and by the digest
the worker recognises the authority of the server, of which it has nothing yet. The server keeps only a
digest of the token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from varangian.protos.identity.bundle import NAME

SECRET, PIN = 20, 10
"""Bytes that prove the token, and bytes of the digest of the authority."""
LONGEST = 256
"""Characters of a token that are read at most; one with the longest name has 150."""
PAD = 8
"""Characters to whose multiples base32 is filled up."""


class TokenError(ValueError):
    """Not an enrolment token; the text continues a sentence, and holds nothing of the token."""


@dataclass(frozen=True)
class EnrolmentToken:
    """An enrolment token."""

    name: str
    """Of the worker."""
    secret: bytes = field(repr=False)
    pin: bytes
    """The digest of the authority of the server."""

    @classmethod
    def make(cls, name: str, authority: bytes) -> EnrolmentToken:
        """A new token, for a server with this `ca.pem`."""
        return cls(name, secrets.token_bytes(SECRET), pin_of(authority))

    @classmethod
    def parse(cls, text: str) -> EnrolmentToken:
        """Read a token; case, spaces, line ends and hyphens do not matter.

        Raises:
            TokenError: it is none.
        """
        plain = "".join(text.split()).replace("-", "").upper()
        if not plain or len(plain) > LONGEST:
            found = f"{len(plain)} characters" if plain else "nothing"
            raise TokenError(f"should be a token of `varangian workers invite`. Found {found}.")
        try:
            data = base64.b32decode(plain + "=" * (-len(plain) % PAD))
            token = cls(data[: -SECRET - PIN].decode("ascii"), data[-SECRET - PIN : -PIN], data[-PIN:])
        except (binascii.Error, ValueError):
            raise TokenError("should be a token of `varangian workers invite`. Found none.") from None
        if not NAME.fullmatch(token.name) or token.text != plain:
            raise TokenError("should be a whole token of `varangian workers invite`. Found a part of one.")
        return token

    @property
    def text(self) -> str:
        """The token as it is given away."""
        data = self.name.encode() + self.secret + self.pin
        return base64.b32encode(data).decode().rstrip("=")

    @property
    def digest(self) -> str:
        """What the server keeps of it: blake2b, 256 bits, in hexadecimal."""
        return hashlib.blake2b(self.text.encode(), digest_size=32).hexdigest()

    def trusts(self, authority: bytes) -> bool:
        """Whether this is the `ca.pem` of the server that made the token."""
        return hmac.compare_digest(self.pin, pin_of(authority))


def pin_of(authority: bytes) -> bytes:
    """What a token holds of `ca.pem`."""
    return hashlib.sha256(authority).digest()[:PIN]
