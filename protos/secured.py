"""TLS over a socket that never blocks, with few system calls.

A socket of the standard library's `ssl` reads and writes record by record, 16 KiB each: two calls for each
record that comes and one for each that goes. Here records pass through memory, many at a time, and the
library does to them exactly what it does for its own sockets.

Nor does a call look at more than a little: OpenSSL reads from a socket until there is something to return,
so whoever sends records that carry nothing, a new key each, would keep it there for as long as they like.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from socket import socket
from typing import cast

from varangian.protos.cargo import buffer

RECORDS = 256 << 10
"""Bytes that are encrypted or decrypted at once."""
AROUND = 1 << 10
"""Bytes that may come with a few bytes of payload."""
EMPTY = 40 << 10
"""Bytes in which there may be none, more than two records that have come in part, and on top of that"""
SPARE = 16
"""this part of the payload; an honest end takes a thousandth."""
HELLO, SHAKEN = 4 << 10, 256 << 10
"""Bytes of a handshake that are looked at at once, and in all."""


class Secured:
    """What a line needs of a socket, over TLS.

    Every method may raise `ssl.SSLWantReadError` or `ssl.SSLWantWriteError` when the socket is not ready,
    and is then to be called again with the same arguments.

    Args:
        context: who is trusted, and what is shown.
        connection: connected, never blocking.
        host: whom the other end has to be certified as; None at a server.
    """

    def __init__(self, context: ssl.SSLContext, connection: socket, host: str | None = None) -> None:
        self._connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=host is None, server_hostname=host)
        self._rest = memoryview(b"")
        """Encrypted, and not sent yet."""
        self._owed = 0
        """Bytes that were encrypted by a call that has to be repeated."""
        self._empty = 0
        """Bytes that have come and carried nothing, as far as is known."""

    @property
    def peer(self) -> Mapping[str, Iterable[bytes]]:
        """What was verified, under the names that gRPC has for it."""
        certificate = self._tls.getpeercert(binary_form=True)
        named = self._tls.getpeercert() or {}
        pairs = cast(Iterable[tuple[str, str]], named.get("subjectAltName", ()))
        return {
            "x509_subject_alternative_name": [value.encode() for _, value in pairs],
            "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(certificate).encode()] if certificate else [],
            "ssl_tls_version": [(self._tls.version() or "").encode()],
        }

    def do_handshake(self) -> None:
        """Go on with it."""
        self._flush()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fed(HELLO, SHAKEN):
                    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "hung up during the handshake") from None
            except ssl.SSLError:
                # The other end should hear why, if it is still there.
                with suppress(OSError):
                    self._flush()
                raise
            else:
                break
        self._empty = 0
        self._flush()

    def recv_into(self, memory: memoryview) -> int:
        """As much as there is; 0 at the end of the connection.

        What has come may have been records without a byte for us: then it is nothing yet.
        """
        got = self._read(memory)
        while got < len(memory):
            try:
                if not self._fed(len(memory) - got + AROUND, EMPTY):
                    break
            except ssl.SSLWantReadError:
                if got:
                    break
                raise
            more = self._read(memory[got:])
            if not more:
                if got:
                    break
                raise ssl.SSLWantReadError
            got += more
        return got

    def _read(self, memory: memoryview) -> int:
        """What is there already, decrypted."""
        got = 0
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            # Nothing, and no wish to wait: the other end has said its farewell.
            while got < len(memory) and (
                count := self._tls.read(len(memory) - got, _writable(memory[got:]))
            ):
                got += cast(int, count)
        self._empty = max(0, self._empty - got - got // SPARE)
        return got

    def send(self, data: memoryview | bytes) -> int:
        """As much as is encrypted at once; how much that was."""
        if not self._owed:
            self._owed = self._tls.write(memoryview(data)[:RECORDS])
        self._flush()
        sent, self._owed = self._owed, 0
        return sent

    def _flush(self) -> None:
        """Send what is encrypted."""
        while self._rest or self._out.pending:
            if not self._rest:
                self._rest = memoryview(self._out.read())
            try:
                self._rest = self._rest[self._connection.send(self._rest) :]
            except BlockingIOError:
                raise ssl.SSLWantWriteError from None

    def _fed(self, most: int, limit: int) -> int:
        """Take what has come, and say how much it was; 0 at the end of the connection.

        Raises:
            ssl.SSLError: more than the limit has come to nothing.
        """
        if self._empty > limit:
            raise ssl.SSLError("The other end sends what carries nothing.")
        with suppress(ssl.SSLWantWriteError):
            self._flush()  # TLS answers some records by itself
        if self._out.pending > EMPTY:
            raise ssl.SSLError("The other end asks, and takes none of the answers.")
        memory = buffer("encrypted", RECORDS)[:most]
        try:
            count = self._connection.recv_into(memory)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        self._in.write(memory[:count])
        self._empty += count
        return count


def _writable(memory: memoryview) -> bytearray:
    """What the types of the standard library call it."""
    return cast(bytearray, memory)
