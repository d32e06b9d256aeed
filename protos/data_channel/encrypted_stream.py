"""Encrypted payloads on a data connection, by AES-GCM-HKDF streaming AEAD, beside calls over TLS.

TLS cuts what it carries into records of 16 KiB, and each costs calls, copies and time of its own. Here each
payload has a key that is used for nothing else, and that both ends know from their call; so it needs no
handshake, no certificate and no identity but that of the call.
"""

from __future__ import annotations

from socket import socket

from varangian.protos.data_channel.streaming_aead import (
    KEY,
    PAYLOADS,
    TAG,
    DecryptionError,
    Parameters,
    Segments,
    why_unavailable,
)

__all__ = ["KEY", "PAYLOADS", "TAG", "EncryptedStream", "why_unavailable"]


class EncryptedStream:
    """One encrypted payload, in either direction, over a socket that never blocks.

    Every method may raise `BlockingIOError` when the socket is not ready, and is then to be called again
    with the same arguments.

    Args:
        connection: carries nothing else meanwhile.
        key: for this payload alone.
        associated: what this payload is; both ends have to say the same.
        size: bytes of the payload, at least one.
        parameters: of the encryption.
    """

    def __init__(
        self,
        connection: socket,
        key: bytes,
        associated: bytes,
        size: int,
        parameters: Parameters = PAYLOADS,
    ) -> None:
        self._connection = connection
        self._key, self._associated = key, associated
        self._size, self._parameters = size, parameters
        self._segments: Segments | None = None
        """Known with the header."""
        self._corrupt = False
        """Whether something was received that was not sent."""
        self._memory = memoryview(bytearray(min(parameters.segment, parameters.ciphertext(size))))
        """A segment of ciphertext, the first one with the header before it."""
        self._received = 0
        """Bytes of the next segment that were received."""
        self._rest = memoryview(b"")
        """Bytes that were decrypted and not taken, or encrypted and not sent."""
        self._partial = bytearray()
        """Pieces of a segment to be sent that do not fill it yet."""
        self._owed = 0
        """Bytes that were encrypted by a call that has to be repeated."""

    def recv_into(self, memory: memoryview) -> int:
        """Receive and decrypt segments, as many as fit, or a part of one; 0 at the end of the connection.

        Raises:
            ConnectionError: it is not what was encrypted with this key for this transfer.
        """
        if self._corrupt:
            raise self._error()
        got = self._take_decrypted(memory)
        while got < len(memory) and self._left:
            if got and self._next > len(memory) - got:
                break  # it will fit into the memory of the next call, without a copy
            try:
                if not self._receive_segment():
                    break
            except BlockingIOError:
                if got:
                    break
                raise
            got += self._decrypt_segment(memory[got:])
        return got

    def send(self, data: memoryview) -> int:
        """Encrypt and send up to a segment; returns how many bytes that was.

        Raises:
            ValueError: it is more than the payload.
        """
        if not self._owed:
            self._owed = self._fill_segment(data)
        while self._rest:
            self._rest = self._rest[self._connection.send(self._rest) :]
        sent, self._owed = self._owed, 0
        return sent

    @property
    def _left(self) -> int:
        """Bytes of the payload that were not encrypted or decrypted yet."""
        return self._size if self._segments is None else self._segments.left

    @property
    def _next(self) -> int:
        """Bytes of the payload in the next segment."""
        return min(self._parameters.room(0), self._size) if self._segments is None else self._segments.next

    @property
    def _head(self) -> int:
        """Bytes of the header that stand before the next segment."""
        return self._parameters.header if self._segments is None else 0

    def _receive_segment(self) -> bool:
        """Receive the next segment; False if the connection has ended."""
        whole = self._head + self._next + TAG
        while self._received < whole:
            count = self._connection.recv_into(self._memory[self._received : whole])
            if not count:
                return False
            self._received += count
        return True

    def _decrypt_segment(self, memory: memoryview) -> int:
        """Decrypt the segment into memory, or as much of it as there is room for."""
        segment, size = self._memory[self._head : self._received], self._next
        self._received = 0
        try:
            if self._segments is None:
                self._segments = self._derive(bytes(self._memory[: self._head]))
            if len(memory) >= size:
                self._segments.decrypt_into(segment, memory[:size])
                return size
            plain = memoryview(bytearray(size))
            self._segments.decrypt_into(segment, plain)
        except DecryptionError:
            self._corrupt = True
            raise self._error() from None
        self._rest = plain
        return self._take_decrypted(memory)

    def _take_decrypted(self, memory: memoryview) -> int:
        """Take of what was decrypted before."""
        count = min(len(memory), len(self._rest))
        memory[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _fill_segment(self, data: memoryview) -> int:
        """Add to a segment, and encrypt it when it is full; returns how many bytes it took."""
        if len(self._partial) + len(data) > self._left:
            raise ValueError(f"A payload should end with its last {self._left} bytes.")
        whole = self._next
        piece = data[: whole - len(self._partial)]
        if len(piece) == whole:
            self._encrypt_segment(piece)
            return whole
        self._partial += piece
        if len(self._partial) == whole:
            self._encrypt_segment(self._partial)
            self._partial = bytearray()
        return len(piece)

    def _encrypt_segment(self, plain: memoryview | bytearray) -> None:
        head = self._head
        if self._segments is None:
            header = self._parameters.new_header()
            self._memory[:head] = header
            self._segments = self._derive(header)
        self._rest = self._memory[: head + len(plain) + TAG]
        self._segments.encrypt_into(plain, self._rest[head:])

    def _derive(self, header: bytes) -> Segments:
        return Segments(self._key, header, self._associated, self._size, self._parameters)

    def _error(self) -> ConnectionError:
        return ConnectionError(
            "What has come was not encrypted with the key of its call, for its transfer."
        )
