"""Vectors as bytes, and their digests."""

import pytest
import torch

from varangian.protos.payloads.encoding import WIRE, Encoding, encode_vector, payload_digest


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


ENCODINGS = [
    Encoding(numel, dtype, exact)
    for dtype in WIRE
    for numel, exact in ((1, 0), (1, 1), (255, 0), (256, 3), (600, 0), (600, 88), (513, 1), (600, 600))
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_places_of_units_are_those_of_the_bytes(encoding):
    """The same as counting units one by one."""
    units, column, at = [(0, 0)], 0, 0
    while column < encoding.numel:
        left = encoding.rounded - column
        if left <= 0:
            columns, width = 1, 4
        elif encoding.dtype == "int8":
            columns = min(256, left)
            width = 4 + columns
        else:
            columns, width = 1, {"float32": 4, "bfloat16": 2}[encoding.dtype]
        column, at = column + columns, at + width
        units.append((column, at))
    assert encoding.size == at
    for column, at in units:
        assert encoding.offset(column) == at
        assert encoding.whole(column) == column
    for byte in range(encoding.size + 1):
        assert encoding.columns(byte) == max(column for column, at in units if at <= byte)
        assert encoding.reached(byte) == min(column for column, at in units if at >= byte)
    for any_column in range(encoding.numel):
        assert encoding.whole(any_column) == max(column for column, _ in units if column <= any_column)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_vector_comes_back_rounded_but_for_its_last_numbers(encoding):
    vector = torch.randn(encoding.numel, generator=torch.Generator().manual_seed(1))
    payload = encoding.encode(vector, 5)
    assert len(payload) == encoding.size
    assert bytes(payload) == bytes(encoding.encode(vector.clone(), 5))
    back = encoding.decode(payload)
    assert torch.equal(back[encoding.rounded :], vector[encoding.rounded :])
    bound = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 127}[encoding.dtype]
    assert (back - vector).abs().max() <= bound * vector.abs().max()


def test_a_vector_has_as_many_numbers_as_its_encoding():
    with pytest.raises(ValueError, match=r"should have 3 numbers. Found 2"):
        Encoding(3).encode(torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"at most 3 numbers. Found 4"):
        Encoding(3, exact=4)


def test_int8_takes_a_quarter_of_float32():
    assert Encoding(1 << 20).size / Encoding(1 << 20, "int8").size == 1024 / 260
