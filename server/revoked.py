"""Certificates that count no longer: one fingerprint a line, read again whenever the file changes."""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

END = "-----END CERTIFICATE-----"
DIGITS = frozenset("0123456789abcdef")


class Revoked:
    """The fingerprints in a file.

    A list that cannot be read later on leaves the last good one in force: no certificate comes back to life
    because a file is damaged.

    Raises:
        ValueError: the file is there and is no such list; without a file nothing is revoked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _version(path)
        self._fingerprints = frozenset[str]() if self._seen is None else self._read()

    def __contains__(self, mark: str) -> bool:
        version = _version(self.path)
        if version != self._seen:
            self._seen = version
            self._renew()
        return mark in self._fingerprints

    def _renew(self) -> None:
        try:
            self._fingerprints = self._read()
        except (OSError, ValueError) as error:
            log.error("security: the last list of revoked certificates stays in force: %s", error)
        else:
            log.warning("security: %d certificates are revoked now", len(self._fingerprints))

    def _read(self) -> frozenset[str]:
        try:
            return fingerprints(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal; of the first when there are several."""
    return hashlib.sha256(der(pem)).hexdigest()


def der(pem: bytes) -> bytes:
    """A certificate in binary form; the first when there are several."""
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii", "replace").partition(END)[0] + END)


def fingerprints(text: str) -> frozenset[str]:
    """What a list of revoked certificates says.

    Raises:
        ValueError: a line does not begin with a fingerprint.
    """
    found: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words and not (len(words[0]) == 64 and DIGITS.issuperset(words[0])):
            raise ValueError(
                f"line {number} should begin with 64 hexadecimal digits. Found {words[0]!r:.80}."
            )
        found.update(words[:1])
    return frozenset(found)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
