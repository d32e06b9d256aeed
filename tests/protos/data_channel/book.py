"""AES-GCM-HKDF Streaming AEAD once more, word by word and for whole messages: to test against."""

import hashlib
import hmac
import os

SEGMENT, HEADER, TAG = 256 << 10, 40, 16


def hkdf(key, salt, info, size, algorithm):
    """RFC 5869."""
    secret = hmac.new(salt, key, algorithm).digest()
    found, block = b"", b""
    for number in range(1, 1 + -(-size // hashlib.new(algorithm).digest_size)):
        block = hmac.new(secret, block + info + bytes([number]), algorithm).digest()
        found += block
    return found[:size]


class Book:
    """A key and its parameters."""

    def __init__(self, key, associated, segment=SEGMENT, derived=32, algorithm="sha256"):
        self.key, self.associated = key, associated
        self.segment, self.derived, self.algorithm = segment, derived, algorithm
        self.header = 1 + derived + 7

    def _cipher(self, header):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        salt = header[1 : 1 + self.derived]
        return AESGCM(hkdf(self.key, salt, self.associated, self.derived, self.algorithm))

    def segments(self, data, header=None):
        """Of a ciphertext, the header as a part of the first."""
        header = header or bytes([self.header]) + os.urandom(self.header - 1)
        cipher, room = self._cipher(header), self.segment - TAG
        pieces, rest = [data[: room - self.header]], data[room - self.header :]
        pieces += [rest[at : at + room] for at in range(0, len(rest), room)]
        found = [
            cipher.encrypt(self._nonce(header, number, pieces), piece, None)
            for number, piece in enumerate(pieces)
        ]
        return [header + found[0], *found[1:]]

    def encrypted(self, data, header=None):
        return b"".join(self.segments(data, header))

    def decrypted(self, data):
        header = data[: self.header]
        assert header[0] == self.header
        cipher = self._cipher(header)
        pieces = [data[at : at + self.segment] for at in range(0, len(data), self.segment)]
        pieces[0] = pieces[0][self.header :]
        return b"".join(
            cipher.decrypt(self._nonce(header, number, pieces), piece, None)
            for number, piece in enumerate(pieces)
        )

    def _nonce(self, header, number, pieces):
        return header[-7:] + number.to_bytes(4, "big") + bytes([number == len(pieces) - 1])


def encrypted_size(size):
    """Bytes of a ciphertext with the parameters of payloads."""
    return HEADER + size + TAG * -(-(HEADER + size) // (SEGMENT - TAG))
