"""Limits on messages, before they are parsed."""

import itertools

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tests.refused import refused

from varangian.protos import ps_pb2
from varangian.protos.messages import CHUNK_LIMIT, JOIN_LIMIT, MESSAGE_LIMIT, decode_message
from varangian.protos.payloads.chunks import encode_chunk
from varangian.protos.refusals import Refusal


@pytest.mark.parametrize(
    "kind", [ps_pb2.PushRequest, ps_pb2.PullReply, ps_pb2.JoinRequest, ps_pb2.PullRequest]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(kind, data):
    try:
        message = kind.FromString(data)
    except DecodeError:
        assert refused(decode_message, kind, data) is Refusal.MALFORMED
    else:
        assert decode_message(kind, data) == message


def test_more_bytes_than_the_limit_are_not_parsed():
    data = ps_pb2.JoinRequest(layout="x" * 100).SerializeToString()
    assert decode_message(ps_pb2.JoinRequest, data, len(data)).layout == "x" * 100
    assert refused(decode_message, ps_pb2.JoinRequest, data, len(data) - 1) is Refusal.MALFORMED


def test_the_format_has_no_repeated_field_and_no_map():
    # Two bytes on the wire are enough for an object of a repeated field: amplification by a factor of 30.
    messages = ps_pb2.DESCRIPTOR.message_types_by_name.values()
    fields = list(itertools.chain.from_iterable(message.fields for message in messages))
    assert fields
    assert [field.full_name for field in fields if field.is_repeated] == []


def test_a_chunk_fits_into_a_message():
    assert len(encode_chunk(2**62, bytes(CHUNK_LIMIT))) < MESSAGE_LIMIT
    assert JOIN_LIMIT < MESSAGE_LIMIT
