"""Vectors to chunks and back, with nothing believed about the other end.

A manifest is compared with what this run expects before a byte of payload is read. After that the size of
everything is known, and an `Assembler` copies chunks into memory that exists already: no size that came
over the wire is ever passed to an allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import TypeVar

import torch
from google.protobuf.message import DecodeError, Message
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.layout import DIGEST_BYTES, TEXT_LIMIT, Layout

PROTOCOL = 1
"""Both ends must speak the same version."""
CHUNK_BYTES = 1 << 20
"""Payload in one chunk: smaller costs calls, larger costs memory when many workers send at once."""
CHUNK_FLOOR = 1 << 16
"""The least payload in a chunk that is not the last, or one vector could be a million messages."""
MESSAGE_LIMIT = 8 << 20
"""Bytes in any message; the transport refuses larger ones before they are parsed."""
MANIFEST_LIMIT = 64 << 10
"""Bytes in a message that should hold a manifest."""
JOIN_LIMIT = TEXT_LIMIT + MANIFEST_LIMIT
"""Bytes in a message that should hold a layout."""
ITEM_BYTES = 4

if sys.byteorder != "little":
    raise ImportError("Varangian sends float32 as it lies in memory and needs a little-endian machine")


class Code(Enum):
    """Why a message was refused. The names are part of the wire format, the values are what should be."""

    MALFORMED = "A message should be of the type that this call takes."
    PROTOCOL = "Both ends should speak the same protocol version."
    RUN = "A message should belong to the run that the server holds."
    LAYOUT = "The model of a worker should have the parameters of the server's model."
    SEQUENCE = "A worker should send one vector in a round, with sequence 0."
    DTYPE = "A vector should be sent as float32."
    NUMEL = "A vector should have one number for each number in the model."
    ORDER = "A chunk should start where the one before it ended."
    CHUNK_SIZE = "A chunk that is not the last should not be tiny."
    TOO_MANY_BYTES = "A vector should not have more bytes than its manifest says."
    TOO_FEW_BYTES = "A stream should carry every byte that its manifest promises."
    DIGEST_SIZE = "A manifest should carry a digest of 16 bytes."
    DIGEST = "The bytes of a vector should have the digest that its manifest says."


class CodecError(ValueError):
    """What the other end sent cannot be used. Its text says what should be and what was found."""

    def __init__(self, code: Code, found: str) -> None:
        self.code = code
        super().__init__(f"{code.value} {found}")


M = TypeVar("M", bound=Message)


def decode(message: type[M], data: bytes, limit: int = MESSAGE_LIMIT) -> M:
    """A message from bytes.

    Raises:
        CodecError: when there are more than `limit` bytes, or they are not such a message.
    """
    if len(data) > limit:
        raise CodecError(Code.MALFORMED, f"Found {len(data)} bytes where at most {limit} are read.")
    try:
        return message.FromString(data)
    except DecodeError:
        kind = message.DESCRIPTOR.name
        raise CodecError(Code.MALFORMED, f"Found {len(data)} bytes that are no {kind}.") from None


def digest(payload: bytes | memoryview) -> bytes:
    """blake2b of a payload, 16 bytes."""
    return blake2b(payload, digest_size=DIGEST_BYTES).digest()


def payload(vector: Tensor) -> memoryview:
    """The bytes of a float32 vector, little-endian; shares its memory when it is contiguous on the CPU."""
    flat = vector.detach().to("cpu", torch.float32).contiguous()
    return flat.numpy().data.cast("B")


def chunks(data: memoryview, size: int = CHUNK_BYTES) -> Iterator[ps_pb2.Chunk]:
    """A payload in pieces of `size` bytes; the last may be shorter."""
    for offset in range(0, len(data), size):
        yield ps_pb2.Chunk(offset=offset, data=bytes(data[offset : offset + size]))


@dataclass(frozen=True)
class Contract:
    """What both ends agreed on at Join; a manifest must say the same."""

    run_id: str
    layout: Layout

    def manifest(self, round: int, content_digest: bytes) -> ps_pb2.Manifest:
        return ps_pb2.Manifest(
            protocol=PROTOCOL,
            run_id=self.run_id,
            round=round,
            layout_digest=self.layout.digest,
            dtype=ps_pb2.DTYPE_FLOAT32,
            numel=self.layout.numel,
            content_digest=content_digest,
        )

    def check(self, manifest: ps_pb2.Manifest) -> None:
        """Compare a manifest from the other end.

        Raises:
            CodecError: for the first thing that is not as agreed.
        """
        check_protocol(manifest.protocol)
        check_run(self.run_id, manifest.run_id)
        if manifest.layout_digest != self.layout.digest:
            theirs, ours = manifest.layout_digest.hex(), self.layout.digest.hex()
            raise CodecError(Code.LAYOUT, f"Found layout {theirs:.64} where this run has {ours}.")
        if manifest.sequence != 0:
            raise CodecError(Code.SEQUENCE, f"Found {manifest.sequence}.")
        if manifest.dtype != ps_pb2.DTYPE_FLOAT32:
            raise CodecError(Code.DTYPE, f"Found type number {manifest.dtype}.")
        if manifest.numel != self.layout.numel:
            raise CodecError(
                Code.NUMEL, f"Found {manifest.numel} numbers where the model has {self.layout.numel}."
            )
        if len(manifest.content_digest) != DIGEST_BYTES:
            raise CodecError(Code.DIGEST_SIZE, f"Found {len(manifest.content_digest)} bytes.")


def check_protocol(found: int) -> None:
    if found != PROTOCOL:
        raise CodecError(Code.PROTOCOL, f"This end speaks version {PROTOCOL}, the other end {found}.")


def check_run(run_id: str, found: str) -> None:
    if found != run_id:
        raise CodecError(Code.RUN, f"Found run {found!r:.80} where the server holds {run_id!r}.")


class Assembler:
    """Fills a buffer of known size with chunks, strictly in order.

    Args:
        buffer: writable, exactly as long as the payload; nothing else may write to it meanwhile.
        content_digest: what the whole payload should hash to.
    """

    def __init__(self, buffer: memoryview, content_digest: bytes) -> None:
        self._buffer = buffer.cast("B")
        self._expected = content_digest
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self._filled = 0

    @property
    def complete(self) -> bool:
        """Every byte has arrived; whether they are the right ones, `finish` says."""
        return self._filled == len(self._buffer)

    def add(self, offset: int, data: bytes) -> None:
        """Take the next chunk.

        Raises:
            CodecError: when it is not the next chunk or would not fit; nothing of it is copied then.
        """
        end, total = self._filled + len(data), len(self._buffer)
        if offset != self._filled:
            raise CodecError(Code.ORDER, f"Found offset {offset} after {self._filled} bytes.")
        if end > total or self.complete:
            raise CodecError(Code.TOO_MANY_BYTES, f"Found more than the {total} that were promised.")
        if end < total and len(data) < CHUNK_FLOOR:
            raise CodecError(Code.CHUNK_SIZE, f"Found {len(data)} bytes; at least {CHUNK_FLOOR} are taken.")
        self._buffer[self._filled : end] = data
        self._hash.update(data)
        self._filled = end

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            CodecError: when bytes are missing or are not those that the manifest described.
        """
        if not self.complete:
            found = f"Found {self._filled} of {len(self._buffer)}."
            raise CodecError(Code.TOO_FEW_BYTES, found)
        if self._hash.digest() != self._expected:
            raise CodecError(
                Code.DIGEST, f"Found {self._hash.hexdigest()}, promised {self._expected.hex()}."
            )
