"""Our framing against protobuf's own."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from tests.refused import refused

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.payloads.chunks import decode_chunk, encode_chunk, push_payload
from varangian.protos.refusals import Refusal

OFFSETS = st.integers(0, 2**63 - 1) | st.integers(0, 300) | st.sampled_from([2**20, 2**32])
KINDS = pytest.mark.parametrize("kind", [ps_pb2.PushRequest, ps_pb2.PullReply])


@KINDS
@given(offset=OFFSETS, data=st.binary(max_size=300))
@example(offset=0, data=b"")
@example(offset=1 << 20, data=bytes(1 << 20))
def test_a_frame_is_what_protobuf_writes(kind, offset, data):
    made = encode_chunk(offset, memoryview(data))
    assert made == kind(chunk=ps_pb2.Chunk(offset=offset, data=data)).SerializeToString()


@given(offset=OFFSETS, data=st.binary(min_size=1, max_size=300))
@example(offset=3, data=bytes(70_000))
def test_a_frame_is_looked_into_and_not_copied(offset, data):
    message = encode_chunk(offset, data)
    found = decode_chunk(message)
    assert found is not None
    assert found == (offset, data)
    assert found[1].obj is message


@KINDS
@given(
    message=st.binary(max_size=60)
    | st.builds(
        lambda made, at, byte: made[:at] + bytes([byte]) + made[at:],
        st.builds(encode_chunk, OFFSETS, st.binary(max_size=20)),
        st.integers(0, 12),
        st.integers(0, 255),
    )
    | st.builds(
        lambda head, made: head + made,
        st.lists(st.sampled_from([b"\x12", b"\x08", b"\x00", b"\x01", b"\x80", b"\x02"])).map(b"".join),
        st.builds(encode_chunk, OFFSETS, st.binary(max_size=20)),
    )
)
@example(message=b"\x12\x83\x00\x12\x01x")
def test_what_is_taken_is_what_protobuf_reads(kind, message):
    """Whatever the bytes: we read the same chunk, or leave it to protobuf."""
    found = decode_chunk(message)
    if found is None:
        return
    chunk = kind.FromString(message).chunk
    assert (chunk.offset, chunk.data) == found


@given(message=st.binary(max_size=60))
def test_any_message_is_a_chunk_or_malformed(message):
    try:
        part = ps_pb2.PushRequest.FromString(message)
        is_chunk = part.HasField("chunk")
    except DecodeError:
        is_chunk = False
    if is_chunk:
        assert push_payload(message) == (part.chunk.offset, part.chunk.data)
    else:
        with pytest.raises(Refused) as caught:
            push_payload(message)
        assert caught.value.refusal in (Refusal.MALFORMED, Refusal.DIGEST_SIZE)


@pytest.mark.parametrize(
    "message",
    [
        b"\x12\x05\x12\x01x\x08\x07",  # the offset behind the data
        b"\x12\x02\x08\x07\x12\x03\x12\x01x",  # in two halves, which merge
        b"\x12\x05\x08\x07\x12\x01x\x18\x01",  # with a field that we do not know
        b"\x12\x0e\x08" + b"\x87" + b"\x80" * 8 + b"\x00\x12\x01x",  # with an offset of ten bytes
        b"\x12\x02\x08\x07",  # without data
    ],
)
def test_a_chunk_in_other_words_is_read_by_protobuf(message):
    assert decode_chunk(message) is None
    offset, data = push_payload(message)
    assert (offset, bytes(data)) == (7, b"x" if b"x" in message else b"")


def test_a_seal_carries_a_digest():
    def seal(digest):
        return ps_pb2.PushRequest(seal=ps_pb2.Seal(content_digest=digest)).SerializeToString()

    assert push_payload(seal(bytes(16))) == bytes(16)
    for digest in (b"", bytes(15), bytes(17)):
        assert refused(push_payload, seal(digest)) is Refusal.DIGEST_SIZE
