"""Vectors as bytes, and their digests."""

import pytest
import torch

from varangian.protos.encoding import encode_vector, payload_digest


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
