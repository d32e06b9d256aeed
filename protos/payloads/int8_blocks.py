"""Numbers in int8 blocks: 256 numbers share a scale, and each is one byte.

A block is its scale, float32, then an int8 for each number: a number is the product of the two, in float32.
The scale is the largest magnitude of the block over 127, rounded up. The last block of a vector may be
shorter. So a vector takes 260 bytes where float32 takes 1024: 3.94 times fewer.

Numbers are rounded stochastically: up with the probability that makes the result right on average. The
draws are a function of a seed and of the place of a number, so the same vector has the same bytes again, on
any processor and however it is cut: each operation is exact, or rounded once as IEEE 754 says.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

BLOCK: Final = 256
"""Numbers with one scale."""
SCALE: Final = 4
"""Bytes of a scale, which come before those of its numbers."""
BLOCK_BYTES: Final = SCALE + BLOCK
STEP: Final = 256
"""Blocks at once: few calls, and still in cache."""

MAGNITUDE = np.uint32(0x7FFF_FFFF)
INFINITE = np.uint32(0x7F80_0000)
LEAST_NORMAL = np.uint32(0x0080_0000)
LARGEST_SCALE = np.uint32(0x7BFF_FFFF)
"""The bits of the largest float32 over 128: no int8 makes a number of it that is not finite."""
NAN = np.uint32(0x7FC0_0000)
TINY = np.uint32(0x0D00_0000)
"""The bits of 2^-101: for a smaller scale, a subnormal number may count."""

LEVELS = 127
FRACTION = 24
"""Bits after the point while a number is rounded."""
GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[np.uint32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def block_bytes(count: int) -> int:
    """Bytes of so many numbers, from the start of a block on."""
    return count + SCALE * -(-count // BLOCK)


def encode_blocks(numbers: Floats, first: int, seed: int, out: Bytes) -> None:
    """Write numbers as blocks.

    What is read differs from a number by no more than the scale of its block, and is right on average. A
    block with a number that is not finite gets a scale that is not. Subnormal numbers are zeros.

    Args:
        numbers: (k,), from the start of a block on, and up to the end of one or of the vector.
        first: the place of their first block in the vector.
        seed: of the draws.
        out: (`block_bytes(k)`,).
    """
    whole = len(numbers) // BLOCK
    to = out[: whole * BLOCK_BYTES].reshape(whole, BLOCK_BYTES)
    blocks = numbers[: whole * BLOCK].reshape(whole, BLOCK)
    for at in range(0, whole, STEP):
        _encode(blocks[at : at + STEP], first + at, seed, to[at : at + STEP])
    if rest := len(numbers) - whole * BLOCK:
        padded = np.zeros((1, BLOCK), np.float32)
        padded[0, :rest] = numbers[whole * BLOCK :]
        last = np.empty((1, BLOCK_BYTES), np.uint8)
        _encode(padded, first + whole, seed, last)
        out[whole * BLOCK_BYTES :] = last[0, : SCALE + rest]


def decode_blocks(source: bytes | bytearray | memoryview, out: Floats) -> bool:
    """Read numbers from blocks; returns whether all are finite.

    A scale that no honest worker writes, as one that is negative, subnormal, too large or not a number,
    makes NaN of its block. Any other bytes are numbers.

    Args:
        source: the bytes of whole blocks, the last of which may be shorter, at any address.
        out: (k,), of as many numbers.
    """
    found = np.frombuffer(source, np.uint8)
    if found.size != block_bytes(len(out)):
        expected = block_bytes(len(out))
        raise ValueError(f"{len(out)} numbers should have {expected} bytes. Found {found.size}.")
    whole = len(out) // BLOCK
    blocks = found[: whole * BLOCK_BYTES].reshape(whole, BLOCK_BYTES)
    to = out[: whole * BLOCK].reshape(whole, BLOCK)
    finite = True
    for at in range(0, whole, STEP):
        finite &= _decode(blocks[at : at + STEP], to[at : at + STEP])
    if len(out) > whole * BLOCK:
        finite &= _decode(found[None, whole * BLOCK_BYTES :], out[None, whole * BLOCK :])
    return finite


def _encode(numbers: Floats, first: int, seed: int, out: Bytes) -> None:
    """Whole blocks (b, 256) to bytes (b, 260)."""
    top = (numbers.view(np.uint32) & MAGNITUDE).max(axis=1)
    scale, plain = _scales(top)
    if plain:
        # The scale times a power of two is exact: this is the quotient, times the power.
        steps = numbers / (scale.view(np.float32) * np.float32(2.0**-FRACTION))[:, None]
    else:
        steps = _careful_steps(numbers, scale)
    fixed = steps.astype(np.int32)
    fixed += _draws(first, len(numbers), seed)
    fixed >>= FRACTION
    out[:, :SCALE] = scale.astype("<u4").view(np.uint8).reshape(-1, SCALE)
    out[:, SCALE:].view(np.int8)[:] = fixed


def _scales(top: Words) -> tuple[Words, bool]:
    """Bits of the scales of blocks, from those of their largest magnitudes; and whether all are plain.

    A scale is rounded up, so that no number of the block is more than 127 of them. Plain ones are far from
    the least and the largest that there are.
    """
    largest = np.minimum(top, INFINITE).view(np.float32)  # a NaN could be one that raises a warning
    quotient = largest / np.float32(LEVELS)
    scale = quotient.view(np.uint32)
    scale = scale + (quotient.astype(np.float64) * LEVELS < largest)  # both are exact
    if bool(((scale > TINY) & (scale < LARGEST_SCALE)).all()):
        return scale.astype(np.uint32), True
    # In bits, as the processor may be set to make zeros of subnormal numbers.
    scale = np.minimum(np.maximum(scale, LEAST_NORMAL), LARGEST_SCALE).astype(np.uint32)
    scale[top < LEAST_NORMAL] = 0
    scale[top >= INFINITE] = NAN
    return scale, False


def _careful_steps(numbers: Floats, scale: Words) -> Floats:
    """Numbers (b, 256) in units of 2^-24 of any scales, with zeros where a scale is none."""
    none = (scale == 0) | (scale == NAN)
    normal = (numbers.view(np.uint32) & MAGNITUDE) >= LEAST_NORMAL
    steps = np.where(normal & ~none[:, None], numbers, np.float32(0))
    steps /= np.where(none, np.float32(1), scale.view(np.float32))[:, None]
    np.clip(steps, -LEVELS, LEVELS, out=steps)
    steps *= np.float32(1 << FRACTION)
    return steps


def _decode(blocks: Bytes, out: Floats) -> bool:
    """Bytes (b, 4 + k) to numbers (b, k)."""
    scale = np.ascontiguousarray(blocks[:, :SCALE]).view("<u4")[:, 0]
    sound = (scale == 0) | ((scale >= LEAST_NORMAL) & (scale <= LARGEST_SCALE))
    np.copyto(out, blocks[:, SCALE:].view(np.int8))
    if finite := bool(sound.all()):
        out *= scale.view("<f4")[:, None]
    else:
        out *= np.where(sound, scale, NAN).view(np.float32)[:, None]
    return finite


def _draws(first: int, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Draws (b, 256), uniform in [0, 2^24), of the blocks from the first on.

    SplitMix64 of the place of a block gives the start and the step of a generator of 32 bits for its draws
    ("Fast Splittable Pseudorandom Number Generators", Steele, Lea and Flood, 2014).
    """
    key = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    key *= GOLDEN
    key += np.uint64(seed)
    key ^= key >> np.uint64(30)
    key *= np.uint64(0xBF58_476D_1CE4_E5B9)
    key ^= key >> np.uint64(27)
    key *= np.uint64(0x94D0_49BB_1331_11EB)
    key ^= key >> np.uint64(31)
    start = key.astype(np.uint32)
    step = (key >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    mixed = step[:, None] * _PLACES
    mixed += start[:, None]
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EB_CA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2_AE35)
    mixed >>= np.uint32(32 - FRACTION)
    return mixed.view(np.int32)


_PLACES = np.arange(BLOCK, dtype=np.uint32)
