"""Properties of every sequence of bytes that reaches the codec. Shared by Hypothesis and atheris."""

import numpy as np
from google.protobuf.message import DecodeError

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.layout import Layout
from varangian.protos.messages import (
    FIELD_LIMIT,
    MANIFEST_LIMIT,
    SMALL_MESSAGE,
    decode_message,
    has_few_fields,
)
from varangian.protos.payloads.chunks import decode_chunk, encode_chunk
from varangian.protos.payloads.encoding import payload_digest
from varangian.protos.payloads.int8_blocks import block_bytes, decode_blocks
from varangian.protos.payloads.receiving import PayloadSink

OURS = Layout((("weight", (3, 2)), ("bias", (2,))))
MESSAGES = (
    ps_pb2.JoinRequest,
    ps_pb2.JoinReply,
    ps_pb2.PullRequest,
    ps_pb2.PullReply,
    ps_pb2.PushRequest,
    ps_pb2.PushReply,
    ps_pb2.StatusRequest,
    ps_pb2.StatusReply,
)


def chunk(data):
    """What is read by hand is what protobuf reads; what is not, is left to protobuf."""
    found = decode_chunk(data)
    if found is None:
        return
    offset, payload = found
    for kind in (ps_pb2.PushRequest, ps_pb2.PullReply):
        part = kind.FromString(data)
        assert part.WhichOneof("part") == "chunk"
        assert (part.chunk.offset, part.chunk.data) == (offset, payload)
    if len(payload):
        assert decode_chunk(encode_chunk(offset, payload)) == (offset, payload)


def message(data):
    """Bytes are a message or a Refused; one of many fields is refused unless it is small."""
    for kind in MESSAGES:
        try:
            decode_message(kind, data, MANIFEST_LIMIT)
        except Refused:
            many = len(data) > SMALL_MESSAGE and not has_few_fields(data, FIELD_LIMIT)
            assert len(data) > MANIFEST_LIMIT or many or not _parses(kind, data)


def layout(data):
    """Text is ours, or one printable sentence says where it begins to differ."""
    text = data.decode("utf-8", "replace")
    said = OURS.difference(text)
    assert (said is None) == (text == OURS.text)
    assert said is None or (said.isprintable() and len(said) < 1000)


def assembly(data):
    """Whatever comes, in whatever order: only the whole payload is right.

    Two bytes of data are one chunk: where it starts and how long it is, in small units.
    """
    size = 40
    payload = bytes(range(size))
    row = bytearray(size)
    sink = PayloadSink(size, lambda at: memoryview(row)[at:])
    for start, length in zip(data[::2], data[1::2], strict=False):
        offset = start % 64
        piece = payload[offset : offset + length % 48] + bytes(max(0, length % 48 - size))
        try:
            sink.add(offset, piece)
        except Refused:
            break
        assert sink.passed <= size
    try:
        sink.finish(payload_digest(payload))
    except Refused:
        assert row != payload
    else:
        assert row == payload


def blocks(data):
    """Bytes of int8 blocks are finite numbers or known not to be."""
    count = len(data) - 4 * -(-len(data) // 260)
    if count > 0 and block_bytes(count) == len(data):
        numbers = np.empty(count, np.float32)
        assert decode_blocks(data, numbers) == bool(np.isfinite(numbers).all())


def _parses(kind, data):
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


PROBES = (chunk, message, layout, assembly, blocks)
