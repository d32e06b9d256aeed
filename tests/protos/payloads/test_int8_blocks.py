"""Numbers in int8 blocks: sizes, errors, draws, and bytes that no worker writes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from varangian.protos.payloads.encoding import rounding_seed
from varangian.protos.payloads.int8_blocks import (
    BLOCK,
    BLOCK_BYTES,
    block_bytes,
    decode_blocks,
    encode_blocks,
)

LEAST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)
DIGEST = "4f16b6b673ca185f"


def encoded(numbers, seed=0, first=0):
    numbers = np.asarray(numbers, np.float32)
    out = np.empty(block_bytes(len(numbers)), np.uint8)
    encode_blocks(numbers, first, seed, out)
    return out.tobytes()


def decoded(data):
    blocks = -(-len(data) // BLOCK_BYTES)
    out = np.full(len(data) - 4 * blocks, 7, np.float32)
    return out, decode_blocks(data, out)


def scales(data):
    return [struct.unpack_from("<f", data, at)[0] for at in range(0, len(data), BLOCK_BYTES)]


def normal(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 5), (255, 259), (256, 260), (257, 265)])
def test_a_number_is_a_byte_and_each_256_share_four(count, size):
    assert block_bytes(count) == size
    data = encoded(normal(count))
    assert len(data) == size
    back, finite = decoded(data)
    assert (len(back), finite) == (count, True)


def test_a_scale_is_the_largest_magnitude_over_127_rounded_up():
    numbers = normal(600)
    for at, scale in zip(range(0, 600, BLOCK), scales(encoded(numbers)), strict=True):
        largest = float(np.abs(numbers[at : at + BLOCK]).max())
        below = float(np.nextafter(np.float32(scale), np.float32(0)))
        assert below * 127 < largest <= scale * 127


@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300),
    seed=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_what_is_read_is_within_one_scale(numbers, seed):
    sent = np.asarray(numbers, np.float32)
    data = encoded(sent, seed)
    back, finite = decoded(data)
    assert finite
    bounds = np.repeat(scales(data), BLOCK)[: len(sent)]
    # The quotient and the product were rounded to a float32; a subnormal number is a zero.
    slack = np.abs(sent.astype(np.float64)) * 2**-23 + LEAST
    assert (np.abs(back.astype(np.float64) - sent) <= bounds + slack).all()
    assert not np.signbit(back[back == 0]).any()


def test_roundings_are_right_on_average():
    """300 vectors from one: the mean of each number is near it, as far as draws allow."""
    sent, tries = normal(1000), 300
    sums, squares = np.zeros(1000), np.zeros(1000)
    for round in range(tries):
        data = encoded(sent, rounding_seed("w00", round))
        error = decoded(data)[0].astype(np.float64) - sent
        sums += error
        squares += error**2
    steps = np.repeat(scales(data), BLOCK)[:1000]
    away = sums / tries / (steps * 0.5 / tries**0.5)  # at most 1 standard deviation of a fair rounding
    assert np.abs(away).max() < 5.5
    assert abs(away.mean()) < 5 / 1000**0.5
    # The variance of a fair rounding is f (1 - f) steps^2, on average a sixth.
    assert np.mean(squares / tries / steps**2) == pytest.approx(1 / 6, rel=0.05)


def test_roundings_of_numbers_and_of_workers_have_nothing_in_common():
    sent = np.full(64 * BLOCK, 0.5, np.float32)
    sent[::BLOCK] = 127.0
    one, other, later = (
        decoded(encoded(sent, rounding_seed(*who)))[0] - sent
        for who in (("w00", 0), ("w01", 0), ("w00", 1))
    )
    bound = 5 / len(sent) ** 0.5
    pairs = (one, other), (one, later), (one[1:], one[:-1]), (one[BLOCK:], one[:-BLOCK])
    for left, right in pairs:
        assert abs(np.corrcoef(left, right)[0, 1]) < bound


def test_multiples_of_the_scale_are_not_changed():
    sent = np.arange(-127, 128, dtype=np.float32) * np.float32(0.25)
    for seed in range(20):
        assert decoded(encoded(sent, seed))[0].tolist() == sent.tolist()


@pytest.mark.parametrize("cut", [0, BLOCK, 3 * BLOCK])
def test_blocks_are_the_same_wherever_the_vector_is_cut(cut):
    sent, seed = normal(5 * BLOCK + 9), 2**63 + 11
    assert encoded(sent[:cut], seed) + encoded(sent[cut:], seed, cut // BLOCK) == encoded(sent, seed)


def test_blocks_do_not_depend_on_those_beside_them():
    """Also where one has no scale, the least or the largest: such blocks are written with more care."""
    numbers = normal(9 * BLOCK).reshape(9, BLOCK)
    numbers[1] = 0
    numbers[3] *= np.float32(2.0**-120)
    numbers[4, 5] = np.nan
    numbers[5] *= np.float32(2.0**-98)
    numbers[7, 0] = LARGEST
    numbers[8] *= np.float32(2.0**-149)
    numbers[8, 9] = 1e-30
    alone = [encoded(block, 3, place) for place, block in enumerate(numbers)]
    assert b"".join(alone) == encoded(numbers.ravel(), 3)
    for cut in range(1, 9):
        parts = encoded(numbers[:cut].ravel(), 3), encoded(numbers[cut:].ravel(), 3, cut)
        assert b"".join(parts) == b"".join(alone)


def test_the_bytes_are_those_of_any_machine():
    """Of numbers that are exact, so that a machine or a library that writes others is noticed."""
    numbers = ((np.arange(3000, dtype=np.int64) * 7919 % 6007 - 3003) / 1024).astype(np.float32)
    numbers[300:310] = np.float32(2.0**-140)
    assert rounding_seed("w07", 12) == 7613878806672531788
    data = encoded(numbers, rounding_seed("w07", 12))
    assert data == plainly(numbers, rounding_seed("w07", 12))
    assert xxhash.xxh3_64_hexdigest(data) == DIGEST


def plainly(numbers, seed):
    """The same, a number at a time, in Python's own integers and floats."""
    data = b""
    for block in range(-(-len(numbers) // BLOCK)):
        part = [float(x) if abs(x) >= LEAST else 0.0 for x in numbers[block * BLOCK : (block + 1) * BLOCK]]
        largest = max(map(abs, part))
        scale = float32(largest / 127)
        if scale * 127 < largest:
            scale = float(np.nextafter(np.float32(scale), np.float32(np.inf)))
        key = split(seed + (block + 1) * 0x9E3779B97F4A7C15)
        data += struct.pack("<f", scale)
        for place, x in enumerate(part):
            draw = mix((key % 2**32 + place * (key >> 32 | 1)) % 2**32) >> 8
            data += struct.pack("b", int(float32(x / scale) * 2**24) + draw >> 24)
    return data


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def split(key):
    key %= 2**64
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    return key ^ key >> 31


def mix(word):
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    return (word ^ word >> 13) * 0xC2B2AE35 % 2**32


def test_a_processor_that_makes_zeros_of_subnormal_numbers_writes_the_same():
    numbers = normal(2 * BLOCK) * np.float32(2.0**-126)
    numbers[BLOCK:] *= np.float32(2.0**-3)
    numbers[7] = 1e-3
    before = encoded(numbers, 3)
    back = decoded(before)[0].tobytes()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot be told to")
    try:
        assert encoded(numbers, 3) == before
        assert decoded(before)[0].tobytes() == back
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("bad", [0x7FC00000, 0x7F800000, 0xFF800000, 0xFFC00001, 0x7F800001])
def test_what_is_not_finite_is_not_finite_when_it_is_read(bad):
    numbers = normal(3 * BLOCK)
    numbers.view(np.uint32)[BLOCK + 3] = bad
    with np.errstate(all="raise"):
        back, finite = decoded(encoded(numbers))
    assert not finite
    assert np.isfinite(back).reshape(3, BLOCK).all(axis=1).tolist() == [True, False, True]


def test_the_largest_numbers_stay_finite():
    sent = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    back, finite = decoded(encoded(sent))
    assert finite
    assert np.allclose(back[:2], sent[:2], rtol=1 / 127)


@pytest.mark.parametrize(
    "scale",
    [np.nan, -np.nan, np.inf, -np.inf, -1.0, -0.0, 3e38, float(np.float32(LARGEST / 127)), 1e-40, -1e-40],
)
@pytest.mark.parametrize("count", [1, 256])
def test_a_scale_that_no_worker_writes_makes_no_number(scale, count):
    back, finite = decoded(struct.pack("<f", scale) + bytes([128] * count))
    assert not finite
    assert np.isnan(back).all()


@given(st.binary(max_size=4 * BLOCK_BYTES))
@settings(deadline=None)
def test_any_bytes_are_numbers_or_known_not_to_be(data):
    blocks = -(-len(data) // BLOCK_BYTES)
    if (len(data) - 1) % BLOCK_BYTES < 4:
        return  # less than a scale and a number
    with np.errstate(all="raise"):
        back, finite = decoded(data)
    assert len(back) == len(data) - 4 * blocks
    assert finite == bool(np.isfinite(back).all())
    kept = back[np.isfinite(back)]
    assert ((np.abs(kept) >= LEAST) | (kept == 0)).all()


def test_a_wrong_size_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match=r"256 numbers should have 260 bytes. Found 259"):
        decode_blocks(bytes(259), np.empty(256, np.float32))
