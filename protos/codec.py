"""Vectors to chunks and back, with nothing believed about the other end.

A manifest is compared with what this run expects before a byte of payload is read. After that the size of
everything is known, and an `Assembler` passes on what goes into memory that exists already: no size that
came over the wire is ever passed to an allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, TypeAlias, TypeVar

import torch
import xxhash
from google.protobuf.message import DecodeError, Message
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.chunks import decode_chunk, encode_chunk, has_few_fields
from varangian.protos.layout import DIGEST_BYTES, TEXT_LIMIT, Layout
from varangian.protos.shared_settings import SharedSettings
from varangian.protos.text import quote

PROTOCOL = 3
"""Both ends must speak the same version."""
CHUNK_BYTES = 1 << 20
"""Payload in one chunk: smaller costs calls, larger costs memory when many workers send at once."""
CHUNK_FLOOR, CHUNK_LIMIT = 4 << 10, 4 << 20
"""The sizes of chunk that one end may ask the other for."""
MANIFEST_LIMIT = 64 << 10
"""Bytes in a message that should hold a manifest."""
FIELDS = 64
"""Fields at the top of a message of more than 4 KiB; ours have a third of that."""
SMALL = 4 << 10
"""Bytes of a message that may have any number of fields: so few are parsed at once."""
ROUND_LIMIT = 1 << 53
"""The largest number of a round."""
MESSAGE_LIMIT = CHUNK_LIMIT + MANIFEST_LIMIT
"""Bytes in any message; the transport refuses larger ones before they are parsed."""
JOIN_LIMIT = TEXT_LIMIT + MANIFEST_LIMIT
"""Bytes in a message that should hold a layout."""

Dtype: TypeAlias = Literal["float32", "bfloat16"]
"""How the numbers of a push are written. Those of a pull are always float32."""
FLOAT32: Final = "float32"
WIRE: dict[Dtype, tuple[ps_pb2.Dtype, torch.dtype]] = {
    "float32": (ps_pb2.DTYPE_FLOAT32, torch.float32),
    "bfloat16": (ps_pb2.DTYPE_BFLOAT16, torch.bfloat16),
}

if sys.byteorder != "little":
    raise ImportError("Varangian sends float32 as it lies in memory and needs a little-endian machine")


class Code(Enum):
    """Why a message was refused. The names are part of the wire format, the values are what should be."""

    MALFORMED = "A message should be of the type that this call takes."
    PROTOCOL = "Both ends should speak the same protocol version."
    RUN = "A message should belong to the run that the server holds."
    LAYOUT = "The model of a worker should have the parameters of the server's model."
    COMMON = "Machines of a run should agree."
    SEQUENCE = "A worker should send one vector in a round, with sequence 0."
    DTYPE = "The numbers of a vector should be written as both ends agreed."
    NUMEL = "A vector should have one number for each number in the model."
    ORDER = "A chunk should start where the one before it ended."
    CHUNK_SIZE = "A chunk should not be empty."
    TOO_MANY_BYTES = "A vector should not have more bytes than its manifest says."
    TOO_FEW_BYTES = "A stream should carry every byte that its manifest promises."
    DIGEST_SIZE = "A manifest or a seal should carry a digest of 16 bytes."
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
        CodecError: when there are more than `limit` bytes, or more fields than any message of ours has, or
            they are not such a message.
    """
    if len(data) > limit:
        raise CodecError(Code.MALFORMED, f"Found {len(data)} bytes where at most {limit} are read.")
    if len(data) > SMALL and not has_few_fields(data, FIELDS):
        # A field takes two bytes to send, and much longer and more memory than that to parse.
        raise CodecError(Code.MALFORMED, f"Found {len(data)} bytes that are not at most {FIELDS} fields.")
    try:
        return message.FromString(data)
    except DecodeError:
        kind = message.DESCRIPTOR.name
        raise CodecError(Code.MALFORMED, f"Found {len(data)} bytes that are no {kind}.") from None


def digest(payload: bytes | memoryview) -> bytes:
    """xxh3 of a payload, 128 bits: it finds damage, at the speed of memory, and does not stop a forger.

    Under TLS nobody else can change what is sent. In clear text whoever can change a payload can change its
    digest as well, or read the token that a keyed digest would be made with.
    """
    return xxhash.xxh3_128_digest(payload)


def payload(vector: Tensor, dtype: Dtype = FLOAT32) -> memoryview:
    """The bytes of a vector, little-endian; shares its memory when it is written so already.

    A rounding to bfloat16 goes to the nearest, ties to even.
    """
    flat = vector.detach().to("cpu", WIRE[dtype][1]).contiguous()
    return flat.view(torch.uint8).numpy().data


def chunks(data: memoryview, size: int = CHUNK_BYTES, offset: int = 0) -> Iterator[bytes]:
    """Messages with a payload, from this offset on, in pieces of `size` bytes; the last may be shorter."""
    for at in range(offset, len(data), size):
        yield encode_chunk(at, data[at : at + size])


def push_payload(data: bytes) -> tuple[int, memoryview] | bytes:
    """What a message of a push brings after the manifest.

    Offset and payload of a chunk, the payload where it lies; or the digest of a seal.

    Raises:
        CodecError: when it is neither.
    """
    found = decode_chunk(data)
    if found is not None:
        return found
    # Rare: a seal, or another program that writes the same message in another way.
    part = decode(ps_pb2.PushRequest, data, MANIFEST_LIMIT)
    if part.HasField("chunk"):
        return part.chunk.offset, memoryview(part.chunk.data)
    if part.HasField("seal"):
        check_digest(part.seal.content_digest)
        return part.seal.content_digest
    raise CodecError(Code.MALFORMED, "Found something else where a chunk should be.")


@dataclass(frozen=True)
class Contract:
    """What both ends agreed on at Join; a manifest must say the same."""

    run_id: str
    layout: Layout
    dtype: Dtype = FLOAT32
    """Of what this manifest announces."""
    common: SharedSettings = field(default_factory=SharedSettings)
    """What else is compared, at Join alone."""
    classes: int | None = None
    """How many classes the samples have, for workers whose own data has fewer."""

    @property
    def size(self) -> int:
        """Bytes of a payload."""
        return self.layout.numel * WIRE[self.dtype][1].itemsize

    def manifest(self, round: int, content_digest: bytes) -> ps_pb2.Manifest:
        return ps_pb2.Manifest(
            protocol=PROTOCOL,
            run_id=self.run_id,
            round=round,
            layout_digest=self.layout.digest,
            dtype=WIRE[self.dtype][0],
            numel=self.layout.numel,
            content_digest=content_digest,
        )

    def check(self, manifest: ps_pb2.Manifest, sealed: bool = False) -> None:
        """Compare a manifest from the other end, which may have no digest if the payload is to be sealed.

        Raises:
            CodecError: for the first thing that is not as agreed.
        """
        check_protocol(manifest.protocol)
        check_run(self.run_id, manifest.run_id)
        if manifest.layout_digest != self.layout.digest:
            theirs, ours = manifest.layout_digest[: 2 * DIGEST_BYTES].hex(), self.layout.digest.hex()
            raise CodecError(Code.LAYOUT, f"Found layout {theirs} where this run has {ours}.")
        if manifest.sequence != 0:
            raise CodecError(Code.SEQUENCE, f"Found {manifest.sequence}.")
        if manifest.dtype != WIRE[self.dtype][0]:
            raise CodecError(Code.DTYPE, f"Found type number {manifest.dtype} in place of {self.dtype}.")
        if manifest.numel != self.layout.numel:
            raise CodecError(
                Code.NUMEL, f"Found {manifest.numel} numbers where the model has {self.layout.numel}."
            )
        if manifest.content_digest or not sealed:
            check_digest(manifest.content_digest)


def check_digest(found: bytes) -> None:
    if len(found) != DIGEST_BYTES:
        raise CodecError(Code.DIGEST_SIZE, f"Found {len(found)} bytes.")


def check_protocol(found: int) -> None:
    if found != PROTOCOL:
        sentence = (
            f"This end speaks version {PROTOCOL}, the other end {found}. Install one release at both."
        )
        raise CodecError(Code.PROTOCOL, sentence)


def check_round(found: int) -> None:
    """Of a round that a server says it is in: a worker answers with the number before it or after it."""
    if found > ROUND_LIMIT:
        raise CodecError(Code.MALFORMED, f"Found round {found}, which no run has.")


def check_dtype(found: int) -> Dtype:
    """The name of what a server asks for."""
    for name, (number, _) in WIRE.items():
        if found == number:
            return name
    raise CodecError(Code.DTYPE, f"The server asks for type number {found}; is it newer than this worker?")


def check_run(run_id: str, found: str) -> None:
    if found != run_id:
        raise CodecError(
            Code.RUN, f"Found run {quote(found, 80)} where the server holds {quote(run_id, 80)}."
        )


class Assembler:
    """Lets the chunks of one payload pass, strictly in order, and knows at the end whether they were right.

    Args:
        size: bytes of the payload.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.passed = 0
        """Bytes so far, and where the next chunk starts."""
        self._hash = xxhash.xxh3_128()

    @property
    def complete(self) -> bool:
        """Every byte has arrived; whether they are the right ones, `finish` says."""
        return self.passed == self.size

    def add(self, offset: int, data: bytes | memoryview) -> memoryview:
        """The next chunk, for whoever stores it.

        Raises:
            CodecError: when it is not the next chunk, or more than was promised.
        """
        end = self.passed + len(data)
        if offset != self.passed:
            raise CodecError(Code.ORDER, f"Found offset {offset} after {self.passed} bytes.")
        if end > self.size or self.complete:
            raise CodecError(Code.TOO_MANY_BYTES, f"Found more than the {self.size} that were promised.")
        if not data:
            raise CodecError(Code.CHUNK_SIZE, f"Found one after {self.passed} of {self.size} bytes.")
        self._hash.update(data)
        self.passed = end
        return memoryview(data)

    def finish(self, content_digest: bytes) -> None:
        """There are no more chunks, and this is what the whole payload should hash to.

        Raises:
            CodecError: when bytes are missing or are not those that were promised.
        """
        if not self.complete:
            raise CodecError(Code.TOO_FEW_BYTES, f"Found {self.passed} of {self.size}.")
        check_digest(content_digest)
        if self._hash.digest() != content_digest:
            raise CodecError(
                Code.DIGEST, f"Found {self._hash.hexdigest()}, promised {content_digest.hex()}."
            )
