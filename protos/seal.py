"""Payloads under AES-256-GCM, for connections beside calls that go over TLS.

TLS cuts what it carries into records of 16 KiB, and each costs calls, copies and time of its own. Here each
payload has a key that is used for nothing else, and that both ends know from their call; so it needs no
handshake, no certificate and no identity but that of the call. A record has 256 KiB, the last one what is
left, and a tag after it. Its nonce is its number. As the size of a payload is known before it comes,
nothing says where a record ends: none can be left out, added, repeated, moved or cut short.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from socket import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEY", "RECORD", "TAG", "Sealed", "missing"]

KEY, TAG = 32, 16
"""Bytes."""
NONCE = 12
RECORD = 256 << 10
"""Bytes of payload: few calls, and still in cache when they are looked at."""


@cache
def missing() -> str:
    """Why payloads cannot be sealed here; nothing when they can."""
    advice = "pip install --upgrade 'varangian[certs]'"
    if find_spec("cryptography") is None:
        return f"the package `cryptography` is not installed: {advice}"
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not hasattr(AESGCM, "decrypt_into"):
        return f"the package `cryptography` is too old: {advice}"
    return ""


class Sealed:
    """One payload on its way, in either direction, over a socket that never blocks.

    Every method may raise `BlockingIOError` when the socket is not ready, and is then to be called again
    with the same arguments.

    Args:
        connection: carries nothing else meanwhile.
        key: for this payload alone. With another one its nonces would be used twice, and all is lost.
        size: bytes of the payload.
    """

    def __init__(self, connection: socket, key: bytes, size: int) -> None:
        self._connection = connection
        self._cipher = _cipher(key)
        self._left = size
        self._number = 0
        self._record = memoryview(bytearray(min(RECORD, size) + TAG))
        self._came = 0
        """Bytes of the next record that are there."""
        self._rest = memoryview(b"")
        """What was opened and not taken, or sealed and not sent."""
        self._begun = bytearray()
        """Of a record that is to be sent: pieces that do not fill it yet."""
        self._owed = 0
        """Bytes that were sealed by a call that has to be repeated."""

    def recv_into(self, memory: memoryview) -> int:
        """As much as there is; 0 at the end of the connection.

        Raises:
            ConnectionError: it is not what was sealed with this key.
        """
        got = self._taken(memory)
        while got < len(memory) and self._left:
            try:
                if not self._arrived():
                    break
            except BlockingIOError:
                if got:
                    break
                raise
            got += self._opened(memory[got:])
        return got

    def send(self, data: memoryview) -> int:
        """As much as is sealed at once; how much that was.

        Raises:
            ValueError: it is more than the payload.
        """
        if not self._owed:
            self._owed = self._enclosed(data)
        while self._rest:
            self._rest = self._rest[self._connection.send(self._rest) :]
        sent, self._owed = self._owed, 0
        return sent

    def _arrived(self) -> bool:
        """Whether the next record is there, as it should be unless the connection has ended."""
        whole = min(RECORD, self._left) + TAG
        while self._came < whole:
            count = self._connection.recv_into(self._record[self._came : whole])
            if not count:
                return False
            self._came += count
        return True

    def _opened(self, memory: memoryview) -> int:
        """What is in the record, or as much of it as there is room for."""
        from cryptography.exceptions import InvalidTag

        record, nonce = self._record[: self._came], self._next(self._came - TAG)
        size, self._came = self._came - TAG, 0
        try:
            if len(memory) >= size:
                self._cipher.decrypt_into(nonce, record, None, memory[:size])
                return size
            self._rest = memoryview(self._cipher.decrypt(nonce, record, None))
        except InvalidTag:
            raise ConnectionError("What has come was not sealed with the key of its call.") from None
        return self._taken(memory)

    def _taken(self, memory: memoryview) -> int:
        """Of what was opened before."""
        count = min(len(memory), len(self._rest))
        memory[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _enclosed(self, data: memoryview) -> int:
        """Begin a record, or go on with it, and close it when it is full."""
        if len(self._begun) + len(data) > self._left:
            raise ValueError(f"A payload should end with its last {self._left} bytes.")
        whole = min(RECORD, self._left)
        piece = data[: whole - len(self._begun)]
        if len(piece) == whole:
            self._closed(piece)
            return whole
        self._begun += piece
        if len(self._begun) == whole:
            self._closed(self._begun)
            self._begun = bytearray()
        return len(piece)

    def _closed(self, plain: memoryview | bytearray) -> None:
        self._rest = self._record[: len(plain) + TAG]
        self._cipher.encrypt_into(self._next(len(plain)), plain, None, self._rest)

    def _next(self, size: int) -> bytes:
        """The nonce of a record of so many bytes."""
        nonce = self._number.to_bytes(NONCE, "big")
        self._number += 1
        self._left -= size
        return nonce


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
