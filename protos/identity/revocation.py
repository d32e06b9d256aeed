"""Certificate revocation list: one fingerprint a line, read again within a second of a change."""

from __future__ import annotations

import hashlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from varangian.protos.identity.watched_files import Change, Failure, WatchedFiles
from varangian.protos.network.descriptors import Spare
from varangian.structured_logs import event

log = logging.getLogger(__name__)

END = "-----END CERTIFICATE-----"
DIGITS = frozenset("0123456789abcdef")


class RevocationList:
    """A list of revoked certificates, by fingerprint.

    A list that cannot be read later on leaves the last good one in force: no certificate comes back to life
    because a file is damaged or gone, or because the process has no file descriptor left.

    Args:
        path: of the list. Every bundle of a server has one, also where nothing was ever revoked.
        spare: a file descriptor for when the process has no other left.
        clock: seconds from any start.

    Raises:
        ValueError: the file is no such list, or is not there.
    """

    def __init__(
        self, path: Path, spare: Spare | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self._watched = WatchedFiles((path,), self._read, spare or Spare(), clock=clock)

    def __contains__(self, fingerprint: str) -> bool:
        self.look()
        return fingerprint in self._watched.value

    def __len__(self) -> int:
        return len(self._watched.value)

    @property
    def failure(self) -> Failure | None:
        """Why the list cannot be read; None while it can."""
        return self._watched.failure

    @property
    def missing_for(self) -> float:
        """Seconds for which there has been no list."""
        return self._watched.missing_for

    def look(self) -> None:
        """Read the list again if it has changed; at most once a second."""
        change = self._watched.look()
        if change is Change.CHANGED:
            log.warning(
                "security: the list of revoked certificates was read again: %d on it",
                len(self),
                extra=event("revocations_read", certificates=len(self)),
            )
        elif change is Change.RECOVERED:
            log.warning(
                "security: the list of revoked certificates can be read again",
                extra=event("revocations_read"),
            )
        elif change is Change.FAILED and self.failure is not None:
            error = self.failure.error
            log.error(
                "security: the last list of revoked certificates stays in force: %s",
                error,
                extra=event("revocations_kept"),
            )

    def _read(self) -> frozenset[str]:
        try:
            return parse_fingerprints(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{self.path} should be the list of revoked certificates, which every bundle of a server "
                "has. Found none. Copy it from the bundle at the authority; it is an empty file there if "
                "nothing was ever revoked."
            ) from None
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal; of the first when there are several."""
    return hashlib.sha256(der(pem)).hexdigest()


def der(pem: bytes) -> bytes:
    """A certificate in binary form; the first when there are several."""
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii", "replace").partition(END)[0] + END)


def parse_fingerprints(text: str) -> frozenset[str]:
    """Parse a list of revoked certificates.

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
