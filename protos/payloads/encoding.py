"""Encoding of vectors: number types on the wire, where numbers lie in a payload, and its digest."""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
import xxhash
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.layout import DIGEST_BYTES
from varangian.protos.payloads.int8_blocks import (
    BLOCK,
    BLOCK_BYTES,
    block_bytes,
    decode_blocks,
    encode_blocks,
)
from varangian.protos.refusals import Refusal

RowDtype: TypeAlias = Literal["float32", "bfloat16"]
"""Type of numbers that lie one after the other, as in the rows of a server."""
Dtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
"""Type of the numbers in a push. Those of a pull are always float32."""
FLOAT32: Final = "float32"
WIRE: dict[Dtype, ps_pb2.Dtype] = {
    "float32": ps_pb2.DTYPE_FLOAT32,
    "bfloat16": ps_pb2.DTYPE_BFLOAT16,
    "int8": ps_pb2.DTYPE_INT8,
}
"""The numbers of the types in messages."""
TORCH: dict[RowDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNITS: dict[Dtype, tuple[int, int]] = {"float32": (4, 1), "bfloat16": (2, 1), "int8": (BLOCK_BYTES, BLOCK)}
"""Bytes that are read together, and how many numbers they are."""
EXACT: Final = 4
"""Bytes of a number that is not rounded."""

if sys.byteorder != "little":
    raise ImportError("Varangian sends float32 as it lies in memory and needs a little-endian machine")


def payload_digest(payload: bytes | memoryview) -> bytes:
    """xxh3 of a payload, 128 bits: it finds damage, at the speed of memory, and does not stop a forger.

    Under TLS nobody else can change what is sent. In clear text whoever can change a payload can change its
    digest as well, or read the token that a keyed digest would be made with.
    """
    return xxhash.xxh3_128_digest(payload)


def check_digest(found: bytes) -> None:
    if len(found) != DIGEST_BYTES:
        raise Refused(Refusal.DIGEST_SIZE, f"Found {len(found)} bytes.")


def encode_vector(vector: Tensor, dtype: RowDtype = FLOAT32) -> memoryview:
    """The bytes of a vector, little-endian; shares its memory when it is written so already.

    A rounding to bfloat16 goes to the nearest, ties to even.
    """
    flat = vector.detach().to("cpu", TORCH[dtype]).contiguous()
    return flat.view(torch.uint8).numpy().data


def take(vector: Tensor, slices: Sequence[slice]) -> Tensor:
    """A part of a vector, a copy; as of one fragment of the parameters."""
    return torch.cat([vector[part] for part in slices])


def put(vector: Tensor, slices: Sequence[slice], numbers: Tensor) -> None:
    """Write a part of a vector, as `take` gives it."""
    at = 0
    for part in slices:
        size = part.stop - part.start
        vector[part] = numbers[at : at + size]
        at += size


class Parts:
    """The bytes of parts of a float32 vector, one after the other, where they lie in it.

    Args:
        whole: the bytes of the vector.
        slices: of its numbers.
    """

    def __init__(self, whole: memoryview, slices: Sequence[slice]) -> None:
        self._parts = [whole[part.start * EXACT : part.stop * EXACT] for part in slices]
        self._starts = [*accumulate(map(len, self._parts), initial=0)]

    def __len__(self) -> int:
        return self._starts[-1]

    def rest(self, at: int) -> memoryview:
        """The bytes from a place on, until the end of the part that it is in."""
        part = bisect_right(self._starts, at, hi=len(self._parts)) - 1
        return self._parts[part][at - self._starts[part] :]

    def __getitem__(self, place: slice) -> memoryview:
        """Bytes from a place to another: a view of them, or a copy where they are of several parts."""
        at, stop, _ = place.indices(len(self))
        found = list[memoryview]()
        while at < stop:
            found.append(self.rest(at)[: stop - at])
            at += len(found[-1])
        return found[0] if len(found) == 1 else memoryview(b"".join(found))


def rounding_seed(worker: str, round: int) -> int:
    """The seed of a worker's roundings in a round: the same vector has the same bytes again."""
    text = json.dumps(["wire", worker, round])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Encoding:
    """The places of the numbers of a vector in its payload.

    First those that are written in the type of the wire, in units: a number of float32 or bfloat16, a
    block of int8. Then those that are not rounded, in float32. A unit is read and written as a whole.
    """

    numel: int
    """How many numbers."""
    dtype: Dtype = FLOAT32
    exact: int = 0
    """How many of them, the last ones, are float32 whatever the type of the wire is."""

    def __post_init__(self) -> None:
        if not 0 <= self.exact <= self.numel:
            raise ValueError(f"`exact` should be at most {self.numel} numbers. Found {self.exact}.")

    @property
    def rounded(self) -> int:
        """How many numbers are written in the type of the wire: the first ones."""
        return self.numel - self.exact

    @property
    def plain(self) -> RowDtype | None:
        """The type of all numbers, where they lie one after the other; None where they do not."""
        return None if self.dtype == "int8" or (self.exact and self.dtype != FLOAT32) else self.dtype

    @property
    def size(self) -> int:
        """Bytes of a payload."""
        return self.offset(self.numel)

    def offset(self, column: int) -> int:
        """The byte where a unit begins, from its first column; or where the payload ends."""
        width, columns = UNITS[self.dtype]
        before = min(column, self.rounded)
        if columns == 1:
            return before * width + (column - before) * EXACT
        return block_bytes(before) + (column - before) * EXACT

    def columns(self, at: int) -> int:
        """The number of columns whose units end at this byte or before it."""
        width, columns = UNITS[self.dtype]
        end = self.offset(self.rounded)
        if at >= end:
            return self.rounded + (at - end) // EXACT
        return at // width * columns

    def reached(self, at: int) -> int:
        """The number of columns whose units begin before this byte."""
        width, columns = UNITS[self.dtype]
        end = self.offset(self.rounded)
        if at > end:
            return self.rounded + -(-(at - end) // EXACT)
        return min(-(-at // width) * columns, self.rounded)

    def whole(self, column: int) -> int:
        """The last column up to this one where a unit begins, or the vector ends."""
        return column if column >= self.rounded else column - column % UNITS[self.dtype][1]

    def encode(self, numbers: Tensor, seed: int) -> memoryview:
        """The payload of a vector (numel,); `seed` is of its roundings."""
        if numbers.numel() != self.numel:
            raise ValueError(f"A vector should have {self.numel} numbers. Found {numbers.numel()}.")
        if self.plain is not None:
            return encode_vector(numbers, self.plain)
        flat = numbers.detach().to("cpu", torch.float32).contiguous()
        payload = np.empty(self.size, np.uint8)
        end = self.offset(self.rounded)
        if self.dtype == "int8":
            encode_blocks(flat[: self.rounded].numpy(), 0, seed, payload[:end])
        else:
            payload[:end] = np.frombuffer(encode_vector(flat[: self.rounded], self.dtype), np.uint8)
        payload[end:] = np.frombuffer(encode_vector(flat[self.rounded :]), np.uint8)
        return payload.data

    def decode(self, payload: bytes | memoryview) -> Tensor:
        """The vector (numel,) of a payload, in float32; what is not finite there is not finite here."""
        numbers = torch.empty(self.numel, dtype=torch.float32, device="cpu")
        end = self.offset(self.rounded)
        first, last = memoryview(payload)[:end], memoryview(payload)[end:]
        if self.dtype == "int8":
            decode_blocks(first, numbers[: self.rounded].numpy())
        else:
            bits = np.frombuffer(first, np.int32 if self.dtype == FLOAT32 else np.int16)
            numbers[: self.rounded] = torch.from_numpy(bits.copy()).view(TORCH[self.dtype])
        numbers[self.rounded :] = torch.from_numpy(np.frombuffer(last, np.float32).copy())
        return numbers
