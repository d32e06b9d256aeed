"""Encoding of vectors: number types on the wire, a vector as bytes, and the digest of a payload."""

from __future__ import annotations

import sys
from typing import Final, Literal, TypeAlias

import torch
import xxhash
from torch import Tensor

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.layout import DIGEST_BYTES
from varangian.protos.refusals import Refusal

Dtype: TypeAlias = Literal["float32", "bfloat16"]
"""Type of the numbers in a push. Those of a pull are always float32."""
FLOAT32: Final = "float32"
WIRE: dict[Dtype, tuple[ps_pb2.Dtype, torch.dtype]] = {
    "float32": (ps_pb2.DTYPE_FLOAT32, torch.float32),
    "bfloat16": (ps_pb2.DTYPE_BFLOAT16, torch.bfloat16),
}

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


def encode_vector(vector: Tensor, dtype: Dtype = FLOAT32) -> memoryview:
    """The bytes of a vector, little-endian; shares its memory when it is written so already.

    A rounding to bfloat16 goes to the nearest, ties to even.
    """
    flat = vector.detach().to("cpu", WIRE[dtype][1]).contiguous()
    return flat.view(torch.uint8).numpy().data
