"""The one message that carries payload, put together and taken apart by hand.

`PushRequest{chunk}` and `PullReply{chunk}` are the same bytes: a head of some twenty, then the payload. The
protobuf library copies a payload twice on its way into a message and once on its way out. Here it is joined
to its head once by the sender, and the receiver looks at it where it lies.
"""

from __future__ import annotations

from typing import Final

CHUNK, OFFSET, DATA = b"\x12", b"\x08", b"\x12"
"""Tags of `PushRequest.chunk` and `PullReply.chunk`, of `Chunk.offset` and of `Chunk.data`."""
VARINT_BYTES: Final = 9
"""63 bits: more than any offset or length that is taken."""
LONGEST: Final = 10
"""Bytes of the longest number that protobuf writes."""
FIXED: Final = {1: 8, 5: 4}
"""Bytes of a field by its wire type, where these are always as many."""


def encode_chunk(offset: int, data: bytes | memoryview) -> bytes:
    """A message with this chunk, the bytes that protobuf would write."""
    inner = OFFSET + encode_varint(offset) if offset else b""
    if len(data):
        inner += DATA + encode_varint(len(data))
    return b"".join((CHUNK, encode_varint(len(inner) + len(data)), inner, data))


def decode_chunk(message: bytes) -> tuple[int, memoryview] | None:
    """Offset and data of a chunk, the data where it lies in the message.

    None for everything that `encode_chunk` does not write, which may still be a chunk to protobuf.
    """
    if not message.startswith(CHUNK):
        return None
    length, at = _read_varint(message, 1)
    if length != len(message) - at:
        return None
    offset = 0
    if message.startswith(OFFSET, at):
        offset, at = _read_varint(message, at + 1)
    if offset < 0 or not message.startswith(DATA, at):
        return None
    length, at = _read_varint(message, at + 1)
    if length != len(message) - at:
        return None
    return offset, memoryview(message)[at:]


def has_few_fields(message: bytes, most: int) -> bool:
    """Whether the message is at most so many fields in a row. What is in them is not looked at."""
    at = 0
    for _ in range(most):
        if at == len(message):
            return True
        tag, at = _read_varint(message, at)
        kind = tag & 7 if tag >= 0 else -1
        if kind == 0:
            at = _skip_varint(message, at)
        elif kind == 2:
            length, at = _read_varint(message, at)
            at = at + length if length >= 0 else -1
        elif kind in FIXED:
            at += FIXED[kind]
        else:  # groups, which no message of ours has
            return False
        if not 0 <= at <= len(message):
            return False
    return at == len(message)


def encode_varint(number: int) -> bytes:
    """Seven bits in each byte, the lowest first; the top bit says that more follow."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that starts there, and where it ends; -1 when there is none, or it is too long."""
    number = 0
    for at in range(start, min(start + VARINT_BYTES, len(message))):
        number |= (message[at] & 0x7F) << 7 * (at - start)
        if message[at] < 0x80:
            return number, at + 1
    return -1, start


def _skip_varint(message: bytes, start: int) -> int:
    """Where the number that starts there ends; -1 when it does not."""
    for at in range(start, min(start + LONGEST, len(message))):
        if message[at] < 0x80:
            return at + 1
    return -1
