import itertools
from dataclasses import replace

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from varangian.protos import ps_pb2
from varangian.protos.chunks import encode_chunk, push_payload
from varangian.protos.contract import Contract, check_dtype
from varangian.protos.encoding import WIRE, encode_vector, payload_digest
from varangian.protos.errors import Refused
from varangian.protos.layout import Layout
from varangian.protos.messages import (
    CHUNK_LIMIT,
    JOIN_LIMIT,
    MESSAGE_LIMIT,
    PROTOCOL,
    decode_message,
)
from varangian.protos.refusals import Refusal

LAYOUT = Layout((("weight", (5, 3)), ("bias", (3,))))
CONTRACT = Contract("run-1", LAYOUT)
DIGEST = bytes(16)


def code_of(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    assert str(caught.value).startswith(caught.value.refusal.sentence)
    assert len(str(caught.value)) < 400
    return caught.value.refusal


@pytest.mark.parametrize(
    "vector",
    [
        torch.arange(6, dtype=torch.float64),
        torch.arange(12, dtype=torch.float32)[::2] / 2,
        torch.arange(6, dtype=torch.float32, requires_grad=True),
        torch.arange(6, dtype=torch.bfloat16),
    ],
)
def test_a_payload_is_contiguous_float32(vector):
    payload = encode_vector(vector)
    assert payload.contiguous
    assert (payload.format, payload.itemsize, len(payload)) == ("B", 1, 24)
    assert payload.cast("f").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_contiguous_float32_vector_is_not_copied():
    vector = torch.zeros(4)
    payload = encode_vector(vector)
    vector[2] = 1.0
    assert payload.cast("f").tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("number", "bits"),
    [
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1 + 2**-8, 0x3F80),
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
        (1e-40, 0x0001),
        (3.4e38, 0x7F80),
        (float("-inf"), 0xFF80),
    ],
)
def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even(number, bits):
    payload = encode_vector(torch.tensor([0.0, number]), "bfloat16")
    assert payload.tobytes() == b"\x00\x00" + bits.to_bytes(2, "little")


def test_the_digest_is_xxh3_128():
    # What `xxhsum -H2` prints for the three bytes "abc".
    assert payload_digest(b"abc").hex() == "06b05ab6733a618578af5f94892f3950"
    assert payload_digest(memoryview(bytearray(b"abc"))) == payload_digest(b"abc")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("protocol", 0, Refusal.PROTOCOL),
        ("protocol", 2**32 - 1, Refusal.PROTOCOL),
        ("run_id", "", Refusal.RUN),
        ("run_id", "run-2" * 1000, Refusal.RUN),
        ("layout_digest", b"", Refusal.LAYOUT),
        ("layout_digest", bytes(60_000), Refusal.LAYOUT),
        ("sequence", 1, Refusal.SEQUENCE),
        ("dtype", 0, Refusal.DTYPE),
        ("dtype", 99, Refusal.DTYPE),
        ("numel", 0, Refusal.NUMEL),
        ("numel", LAYOUT.numel + 1, Refusal.NUMEL),
        ("numel", 2**62 + LAYOUT.numel, Refusal.NUMEL),
        ("numel", 2**64 - 1, Refusal.NUMEL),
        ("content_digest", b"", Refusal.DIGEST_SIZE),
        ("content_digest", bytes(17), Refusal.DIGEST_SIZE),
    ],
)
def test_a_manifest_that_differs_in_one_field_is_refused(field, value, code):
    manifest = CONTRACT.manifest(7, DIGEST)
    CONTRACT.check(manifest)
    setattr(manifest, field, value)
    assert code_of(CONTRACT.check, manifest) is code


@given(
    st.builds(
        ps_pb2.Manifest,
        protocol=st.sampled_from([PROTOCOL, 1]),
        run_id=st.sampled_from(["run-1", "run-2"]),
        round=st.integers(0, 2**64 - 1),
        sequence=st.integers(0, 1),
        layout_digest=st.sampled_from([LAYOUT.digest, DIGEST]),
        dtype=st.integers(0, 2),
        numel=st.sampled_from([LAYOUT.numel, 0, 2**63]),
        content_digest=st.binary(max_size=17),
    )
)
def test_a_manifest_passes_exactly_when_it_is_the_one_we_would_write(manifest):
    ours = CONTRACT.manifest(manifest.round, manifest.content_digest)
    good = manifest == ours and len(manifest.content_digest) == 16
    try:
        CONTRACT.check(manifest)
    except Refused:
        assert not good
    else:
        assert good


@pytest.mark.parametrize(
    "kind", [ps_pb2.PushRequest, ps_pb2.PullReply, ps_pb2.JoinRequest, ps_pb2.PullRequest]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(kind, data):
    try:
        message = kind.FromString(data)
    except DecodeError:
        assert code_of(decode_message, kind, data) is Refusal.MALFORMED
    else:
        assert decode_message(kind, data) == message


def test_more_bytes_than_the_limit_are_not_parsed():
    data = ps_pb2.JoinRequest(layout="x" * 100).SerializeToString()
    assert decode_message(ps_pb2.JoinRequest, data, len(data)).layout == "x" * 100
    assert code_of(decode_message, ps_pb2.JoinRequest, data, len(data) - 1) is Refusal.MALFORMED


def test_the_format_has_no_repeated_field_and_no_map():
    # Two bytes on the wire are enough for an object of a repeated field: amplification by a factor of 30.
    messages = ps_pb2.DESCRIPTOR.message_types_by_name.values()
    fields = list(itertools.chain.from_iterable(message.fields for message in messages))
    assert fields
    assert [field.full_name for field in fields if field.is_repeated] == []


def test_a_chunk_fits_into_a_message():
    assert len(encode_chunk(2**62, bytes(CHUNK_LIMIT))) < MESSAGE_LIMIT
    assert JOIN_LIMIT < MESSAGE_LIMIT


def test_a_payload_has_the_size_that_the_contract_says():
    for dtype in WIRE:
        size = len(encode_vector(torch.zeros(LAYOUT.numel), dtype))
        assert size == replace(CONTRACT, dtype=dtype).size


def test_a_manifest_without_a_digest_is_for_payloads_that_are_sealed():
    CONTRACT.check(CONTRACT.manifest(0, b""), digest_follows=True)
    CONTRACT.check(CONTRACT.manifest(0, DIGEST), digest_follows=True)
    assert code_of(CONTRACT.check, CONTRACT.manifest(0, b"x")) is Refusal.DIGEST_SIZE


def test_a_seal_carries_a_digest():
    def seal(digest):
        return ps_pb2.PushRequest(seal=ps_pb2.Seal(content_digest=digest)).SerializeToString()

    assert push_payload(seal(DIGEST)) == DIGEST
    for digest in (b"", bytes(15), bytes(17)):
        assert code_of(push_payload, seal(digest)) is Refusal.DIGEST_SIZE


def test_a_manifest_of_another_dtype_is_refused():
    narrow = replace(CONTRACT, dtype="bfloat16")
    narrow.check(narrow.manifest(0, DIGEST))
    assert code_of(CONTRACT.check, narrow.manifest(0, DIGEST)) is Refusal.DTYPE


def test_a_dtype_that_is_not_known_is_refused():
    assert check_dtype(ps_pb2.DTYPE_BFLOAT16) == "bfloat16"
    for number in (0, 99):
        assert code_of(check_dtype, number) is Refusal.DTYPE
