"""AES-GCM-HKDF Streaming AEAD, as Tink specifies it: one message in segments, each authenticated by itself.

    header      = its length (one byte) || salt || nonce prefix (7 bytes)
    derived key = HKDF(key, salt, info = associated data)
    segment i   = AES-GCM(derived key, nonce = nonce prefix || i (4 bytes) || 1 if it is the last, else 0)

Integers are big-endian. All segments of the ciphertext have the same size, the first one together with the
header; the last one has what is left. docs/security/encryption.md says where it is used and what binds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from secrets import token_bytes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY, TAG = 32, 16
"""Bytes of a key from which others are derived, and of the tag of a segment."""
NONCE_PREFIX = 7
COUNTER = 4


class DecryptionError(ValueError):
    """A ciphertext was not made with this key, for these associated data, or not for this place."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of the encryption, under the names that Tink gives them."""

    derived_key_size: int = 32
    hkdf_hash: str = "SHA256"
    segment: int = 256 << 10
    """Bytes of a segment of ciphertext, with its tag: few calls, and still in cache when it is read."""

    @property
    def header(self) -> int:
        """Bytes before the first segment."""
        return 1 + self.derived_key_size + NONCE_PREFIX

    def new_header(self) -> bytes:
        """A header for one message, with a salt and a nonce prefix of its own."""
        return bytes([self.header]) + token_bytes(self.header - 1)

    def room(self, number: int) -> int:
        """Bytes of plaintext in a full segment."""
        return self.segment - TAG - (0 if number else self.header)

    def count(self, size: int) -> int:
        """Segments of a message of so many bytes; an empty message has one."""
        return 1 + max(0, -(-(size - self.room(0)) // self.room(1)))

    def ciphertext(self, size: int) -> int:
        """Bytes of the ciphertext of a message of so many bytes, with its header."""
        return self.header + size + TAG * self.count(size)

    def pieces(self, size: int, most: int) -> Iterator[tuple[int, int]]:
        """Cuts of a message into whole segments, at most `most` bytes at once: none is copied."""
        start, segments = 0, max(1, most // self.segment)
        while start < size:
            first = self.header if start == 0 else 0
            stop = min(size, start + segments * self.room(1) - first)
            yield start, stop
            start = stop


PAYLOADS = Parameters()
"""Of payloads: AES256_GCM_HKDF with segments of 256 KiB. They change with the protocol only."""


class Segments:
    """The segments of one message in their order, all encrypted or all decrypted.

    Args:
        key: what the key of this message is derived from.
        header: as it stands before the first segment.
        associated: what the ciphertext is bound to; not a part of it.
        size: bytes of the message.
        parameters: the same at both ends.

    Raises:
        DecryptionError: the header is not one.
        ValueError: the message is too large, or the key too short.
    """

    def __init__(
        self, key: bytes, header: bytes, associated: bytes, size: int, parameters: Parameters = PAYLOADS
    ) -> None:
        if len(header) != parameters.header or header[0] != parameters.header:
            raise DecryptionError("A ciphertext should begin with its header.")
        if len(key) < parameters.derived_key_size:
            raise ValueError(f"A key should have at least {parameters.derived_key_size} bytes.")
        if parameters.count(size) > 1 << 8 * COUNTER:
            raise ValueError(f"A message should have at most 2^{8 * COUNTER} segments.")
        salt, self._prefix = header[1:-NONCE_PREFIX], header[-NONCE_PREFIX:]
        self._cipher = _cipher(_derive_key(key, salt, associated, parameters))
        self._parameters = parameters
        self._number, self._count = 0, parameters.count(size)
        self.left = size
        """Bytes of plaintext in this segment and those after it."""

    @property
    def next(self) -> int:
        """Bytes of plaintext in the next segment."""
        return min(self._parameters.room(self._number), self.left)

    def encrypt_into(self, plain: memoryview | bytearray | bytes, into: memoryview) -> None:
        """Encrypt the next segment, and append its tag."""
        nonce = self._nonce(len(plain))
        self._cipher.encrypt_into(nonce, plain, None, into)

    def decrypt_into(self, segment: memoryview | bytes, into: memoryview) -> None:
        """Decrypt the next segment, which fills `into`; nothing of it is left there on an error.

        Raises:
            DecryptionError: it is not the next segment of this message.
        """
        from cryptography.exceptions import InvalidTag

        if len(segment) != len(into) + TAG:
            raise DecryptionError("A segment should be whole, with its tag.")
        nonce = self._nonce(len(into))
        try:
            self._cipher.decrypt_into(nonce, segment, None, into)
        except InvalidTag:
            into[:] = bytes(len(into))  # OpenSSL decrypts before it knows
            raise DecryptionError("A segment should be the next one of its message.") from None

    def _nonce(self, size: int) -> bytes:
        """The next nonce; each is used once, as there is no way back."""
        if self._number == self._count or size != self.next:
            raise ValueError(
                f"A segment of {size} bytes should not come after {self._number} of {self._count}."
            )
        last = self._number == self._count - 1
        nonce = self._prefix + self._number.to_bytes(COUNTER, "big") + bytes([last])
        self._number += 1
        self.left -= size
        return nonce


@cache
def why_unavailable() -> str:
    """Why nothing can be encrypted here; empty when it can."""
    advice = "pip install --upgrade 'varangian[certs]'"
    if find_spec("cryptography") is None:
        return f"the package `cryptography` is not installed: {advice}"
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not hasattr(AESGCM, "decrypt_into"):
        return f"the package `cryptography` is too old: {advice}"
    return ""


def _derive_key(key: bytes, salt: bytes, associated: bytes, parameters: Parameters) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    algorithm = getattr(hashes, parameters.hkdf_hash)()
    return HKDF(algorithm, parameters.derived_key_size, salt, associated).derive(key)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
