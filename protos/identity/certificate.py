"""Certificates of callers: fingerprint and dates, read from DER.

TLS has verified them when their connections began. The standard library has no parser of certificates; this
one is needed because a certificate may expire, or be revoked, while its connection lasts.
"""

from __future__ import annotations

import calendar
import hashlib
import time
from dataclasses import dataclass
from functools import lru_cache

from varangian.protos.identity.revocation import der

SEQUENCE, VERSION, UTC_TIME, GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
"""Tags of DER."""
FORMATS = {UTC_TIME: "%y%m%d%H%M%SZ", GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}
LONG = 0x80
"""From here on the first byte of a length says how many bytes of length follow."""


@dataclass(frozen=True)
class PeerCertificate:
    """A certificate that was accepted: what decides whether it is still valid."""

    fingerprint: str
    """SHA-256, in hexadecimal."""
    ends: float
    """Seconds since 1970 until which it is valid."""
    holder: str
    """Role and name of its holder, for sentences."""


@lru_cache(maxsize=4096)
def fingerprint_and_end(pem: bytes) -> tuple[str, float]:
    """Fingerprint and end of a certificate.

    Raises:
        ValueError: it is none.
    """
    data = der(pem)
    return hashlib.sha256(data).hexdigest(), validity(data)[1]


def validity(certificate: bytes) -> tuple[float, float]:
    """Begin and end of a certificate in DER, in seconds since 1970.

    Raises:
        ValueError: it is none.
    """
    _, whole, _ = _element(certificate)
    _, rest, _ = _element(whole)
    tag, _, after = _element(rest)
    if tag == VERSION:
        rest = after
    for _ in range(3):  # serial number, algorithm, issuer
        _, _, rest = _element(rest)
    tag, dates, _ = _element(rest)
    if tag != SEQUENCE:
        raise ValueError("A certificate should have its dates after its issuer.")
    first, begins, dates = _element(dates)
    second, ends, _ = _element(dates)
    return _moment(first, begins), _moment(second, ends)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows it."""
    if len(data) < 2:
        raise ValueError("A certificate should not end in the middle of an element.")
    tag, length, start = data[0], data[1], 2
    if length >= LONG:
        start += length - LONG
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("A certificate should not end in the middle of an element.")
    return tag, data[start : start + length], data[start + length :]


def _moment(tag: int, text: bytes) -> float:
    if tag not in FORMATS:
        raise ValueError("A date of a certificate should be a UTCTime or a GeneralizedTime.")
    found = time.strptime(text.decode("ascii"), FORMATS[tag])
    # Two digits of a year are of 1950 to 2049 in certificates, and of 1969 to 2068 in Python.
    year = found.tm_year - 100 if tag == UTC_TIME and found.tm_year >= 2050 else found.tm_year
    return float(calendar.timegm((year, *found[1:6])))
