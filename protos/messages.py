"""Protobuf messages of the other end: limits on their size, checked before they are parsed."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from varangian.protos.errors import Refused
from varangian.protos.layout import TEXT_LIMIT
from varangian.protos.refusals import Refusal

PROTOCOL = 4
"""Version of the wire format. Both ends must speak the same one."""
CHUNK_BYTES = 1 << 20
"""Payload in one chunk: smaller costs calls, larger costs memory when many workers send at once."""
CHUNK_FLOOR, CHUNK_LIMIT = 4 << 10, 4 << 20
"""The sizes of chunk, in bytes, that one end may ask the other for."""
MANIFEST_LIMIT = 64 << 10
"""Bytes in a message that should hold a manifest."""
FIELD_LIMIT = 64
"""Fields at the top of a message of more than 4 KiB; ours have a third of that."""
SMALL_MESSAGE = 4 << 10
"""Bytes of a message that may have any number of fields: so few are parsed at once."""
ROUND_LIMIT = 1 << 53
"""The largest number of a round."""
INLINE_LIMIT = 64 << 10
"""Bytes of parameters up to which payloads travel in one message with their manifest.

That takes half of the processor time of a data connection, up to 512 KiB and beyond. What limits it are
slow lines: at 1 kB a second 64 KiB take about as long as a worker waits for any sign of life.
"""
MESSAGE_LIMIT = CHUNK_LIMIT + MANIFEST_LIMIT
"""Bytes in any message; the transport refuses larger ones before they are parsed."""
JOIN_LIMIT = TEXT_LIMIT + MANIFEST_LIMIT
"""Bytes in a message that should hold a layout."""

VARINT_BYTES: Final = 9
"""63 bits: more than any offset or length that is taken."""
LONGEST_VARINT: Final = 10
"""Bytes of the longest number that protobuf writes."""
FIXED_BYTES: Final = {1: 8, 5: 4}
"""Bytes of a field by its wire type, where these are always as many."""

M = TypeVar("M", bound=Message)


def decode_message(message: type[M], data: bytes, limit: int = MESSAGE_LIMIT) -> M:
    """Parse a message.

    Raises:
        Refused: there are more than `limit` bytes, or more fields than any message of ours has, or
            they are not such a message.
    """
    if len(data) > limit:
        raise Refused(Refusal.MALFORMED, f"Found {len(data)} bytes where at most {limit} are read.")
    if len(data) > SMALL_MESSAGE and not has_few_fields(data, FIELD_LIMIT):
        # A field takes two bytes to send, and much longer and more memory than that to parse.
        raise Refused(
            Refusal.MALFORMED, f"Found {len(data)} bytes that are not at most {FIELD_LIMIT} fields."
        )
    try:
        return message.FromString(data)
    except DecodeError:
        kind = message.DESCRIPTOR.name
        raise Refused(Refusal.MALFORMED, f"Found {len(data)} bytes that are no {kind}.") from None


def has_few_fields(message: bytes, most: int) -> bool:
    """Whether the message is at most so many fields in a row. What is in them is not looked at."""
    at = 0
    for _ in range(most):
        if at == len(message):
            return True
        tag, at = read_varint(message, at)
        kind = tag & 7 if tag >= 0 else -1
        if kind == 0:
            at = skip_varint(message, at)
        elif kind == 2:
            length, at = read_varint(message, at)
            at = at + length if length >= 0 else -1
        elif kind in FIXED_BYTES:
            at += FIXED_BYTES[kind]
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


def read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that starts there, and where it ends; -1 when there is none, or it is too long."""
    number = 0
    for at in range(start, min(start + VARINT_BYTES, len(message))):
        number |= (message[at] & 0x7F) << 7 * (at - start)
        if message[at] < 0x80:
            return number, at + 1
    return -1, start


def skip_varint(message: bytes, start: int) -> int:
    """The end of the varint that starts there; -1 when it has none."""
    for at in range(start, min(start + LONGEST_VARINT, len(message))):
        if message[at] < 0x80:
            return at + 1
    return -1
