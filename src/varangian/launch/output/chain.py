"""Hash chain: each line of a record carries the digest of the line before it, and may be signed.

The first line carries the digest of the documents that say what the run is. The fields of the chain are the
last ones of a line:

    {... what is recorded ..., "lost": 2, "certificate": "-----BEGIN ...", "before": "5f0a...",
     "signature": "MEUC..."}

lost         lines so far that could not be written; only where there are some
certificate  whose key signs from this line on; only in a line where it is new
before       blake2b-256 of the line before, without its line feed
signature    ECDSA with SHA-256 of the line without this field, in base64; only with a certificate

A line alone can still be made up, and so can the last lines be cut off: whoever wants to be sure of the end
keeps the digest of the last line elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

BEFORE, SIGNATURE, CERTIFICATE, LOST = "before", "signature", "certificate", "lost"
BRANCH = "branch_of"
"""The field of a manifest that the chain leaves out: its folder begins with lines of another run."""


class Signer(Protocol):
    """The holder of a private key, whose certificate may be renewed."""

    def certificate(self) -> str:
        """The certificate whose key signs now, in PEM."""
        ...

    def sign(self, data: bytes, /) -> bytes:
        """ECDSA with SHA-256, in DER."""
        ...


def digest(data: bytes) -> str:
    """BLAKE2b-256, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def beginning(config: bytes, manifest: bytes) -> str:
    """The digest in the first line of a record, of the configuration and the manifest of its run."""
    with contextlib.suppress(ValueError):  # one that is no JSON is not that of a branch
        known = json.loads(manifest)
        if isinstance(known, dict) and known.pop(BRANCH, None) is not None:
            manifest = as_document(known)
    return digest(digest(config).encode() + digest(manifest).encode())


def as_document(value: Mapping[str, Any]) -> bytes:
    """JSON for people to read, as documents of a run folder are written."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


class Chain:
    """The chain of one record, to which lines are added.

    Args:
        head: digest of the last line, or of the beginning.
        signer: None signs nothing.
    """

    def __init__(self, head: str, signer: Signer | None = None) -> None:
        self.head = head
        self.signer = signer
        self._certificate = ""

    def line(self, record: str, lost: int = 0) -> str:
        """The line for a record, without a line feed.

        Args:
            record: an object of JSON, ASCII only.
            lost: lines so far that could not be written.
        """
        more: dict[str, Any] = {LOST: lost} if lost else {}
        signer = self.signer
        if signer is not None and (certificate := signer.certificate()) != self._certificate:
            more[CERTIFICATE] = self._certificate = certificate
        line = _extended(record, {**more, BEFORE: self.head})
        if signer is not None:
            signature = base64.b64encode(signer.sign(line.encode())).decode()
            line = _extended(line, {SIGNATURE: signature})
        self.head = digest(line.encode())
        return line


def _extended(line: str, fields: Mapping[str, Any]) -> str:
    """An object of JSON with these fields behind its own."""
    rest = json.dumps(fields)[1:]
    return f"{line[:-1]}, {rest}" if len(line) > 2 else "{" + rest


@dataclass(frozen=True)
class Link:
    """One line of a record, as it was found."""

    number: int
    """From 1."""
    digest: str
    """Of the line, as the next one should carry it."""
    record: Mapping[str, Any] | None
    """None where it is no object of JSON with a round."""
    signed: bytes
    """The bytes that a signature of this line is of."""
    whole: bool = True
    """Whether it ends with a line feed."""

    @property
    def round(self) -> int:
        """The round of its record; -1 where there is none."""
        return -1 if self.record is None else int(self.record["round"])

    @property
    def before(self) -> str | None:
        """The digest of the line before it that it carries."""
        return self._text(BEFORE)

    @property
    def certificate(self) -> str | None:
        """The certificate that is new in it."""
        return self._text(CERTIFICATE)

    @property
    def signature(self) -> bytes | None:
        """Its signature; None without one, empty where it cannot be read."""
        text = self._text(SIGNATURE)
        try:
            return None if text is None else base64.b64decode(text, validate=True)
        except ValueError:
            return b""

    def _text(self, name: str) -> str | None:
        value = None if self.record is None else self.record.get(name)
        return value if isinstance(value, str) else None


def links(lines: Iterable[bytes]) -> Iterator[Link]:
    """The lines of a record, with their line feeds, as links of its chain."""
    mark = f', "{SIGNATURE}": '.encode()
    for number, line in enumerate(lines, start=1):
        whole, text = line.endswith(b"\n"), line.removesuffix(b"\n")
        cut = text.rfind(mark)
        yield Link(number, digest(text), _record(text), text[:cut] + b"}" if cut > 0 else text, whole)


def head_of(line: bytes) -> str:
    """The digest of a line, with which the chain goes on behind it."""
    return digest(line.removesuffix(b"\n"))


def _record(text: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and type(found.get("round")) is int
    return found if good else None
