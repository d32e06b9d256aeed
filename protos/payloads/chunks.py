"""Chunks of a payload: how one is written as a message and read.

`PushRequest{chunk}` and `PullReply{chunk}` are the same bytes: a head of some twenty, then the payload. The
protobuf library copies a payload twice on its way into a message and once on its way out. Here it is joined
to its head once by the sender, and the receiver looks at it where it lies (`receiving`).
"""

from __future__ import annotations

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.messages import MANIFEST_LIMIT, decode_message, encode_varint, read_varint
from varangian.protos.payloads.encoding import check_digest
from varangian.protos.refusals import Refusal

CHUNK, OFFSET, DATA = b"\x12", b"\x08", b"\x12"
"""Tags of `PushRequest.chunk` and `PullReply.chunk`, of `Chunk.offset` and of `Chunk.data`."""
PAYLOAD = b"\x2a"
"""Tag of `PushRequest.payload` and of `PullReply.payload`."""


def encode_chunk(offset: int, data: bytes | memoryview) -> bytes:
    """Write a message with this chunk; the bytes are those that protobuf would write."""
    inner = OFFSET + encode_varint(offset) if offset else b""
    if len(data):
        inner += DATA + encode_varint(len(data))
    return b"".join((CHUNK, encode_varint(len(inner) + len(data)), inner, data))


def encode_inline(manifest: bytes, data: bytes | memoryview) -> bytes:
    """A message with a manifest, as it was written alone, and all of the payload."""
    return b"".join((manifest, PAYLOAD, encode_varint(len(data)), data))


def decode_chunk(message: bytes) -> tuple[int, memoryview] | None:
    """Offset and data of a chunk, the data where it lies in the message.

    None for everything that `encode_chunk` does not write, which may still be a chunk to protobuf.
    """
    if not message.startswith(CHUNK):
        return None
    length, at = read_varint(message, 1)
    if length != len(message) - at:
        return None
    offset = 0
    if message.startswith(OFFSET, at):
        offset, at = read_varint(message, at + 1)
    if offset < 0 or not message.startswith(DATA, at):
        return None
    length, at = read_varint(message, at + 1)
    if length != len(message) - at:
        return None
    return offset, memoryview(message)[at:]


def push_payload(data: bytes) -> tuple[int, memoryview] | bytes:
    """The payload of a message of a push, after the manifest.

    Offset and payload of a chunk, the payload where it lies; or the digest of a seal.

    Raises:
        Refused: when it is neither.
    """
    found = decode_chunk(data)
    if found is not None:
        return found
    # Rare: a seal, or another program that writes the same message in another way.
    part = decode_message(ps_pb2.PushRequest, data, MANIFEST_LIMIT)
    if part.HasField("chunk"):
        return part.chunk.offset, memoryview(part.chunk.data)
    if part.HasField("seal"):
        check_digest(part.seal.content_digest)
        return part.seal.content_digest
    raise Refused(Refusal.MALFORMED, "Found something else where a chunk should be.")
