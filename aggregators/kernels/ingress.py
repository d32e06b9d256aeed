"""Received bytes to a row: conversion, check and store in one pass, while the bytes are in cache.

In C where it was built, else in numpy; both work on the bits of the numbers, and leave the same bits.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.kernels.library import function, level, library

__all__ = ["Wire", "store_numbers", "store_vector"]

Wire: TypeAlias = Literal["float32", "bfloat16"]

SIZES = {"float32": 4, "bfloat16": 2}
ROWS: dict[torch.dtype, Wire] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
BLOCK = 1 << 15
"""Numbers at once, without the compiler: few calls, and still in cache."""
LEAST_NORMAL, INFINITE, MAGNITUDE = 0x0080_0000, 0x7F80_0000, 0x7FFF_FFFF


def store_numbers(source: bytes | bytearray | memoryview, at: int, dtype: Wire, row: Tensor) -> bool:
    """Store little-endian numbers in `row` (d,) from column `at` on; returns whether all are finite.

    Subnormal numbers and zeros of either sign become +0.0. A row in float32 widens bfloat16, exactly. A row
    in bfloat16 rounds float32 to nearest even after that, so its largest numbers may overflow, which
    is not finite. Such numbers are stored as well, and NaN remains NaN. `source` may start at any byte; it
    may also be the memory of the row, if the types are equal.
    """
    count = _counted(source, at, dtype, row)
    if library() is None or sys.byteorder != "little":
        return _plainly(source, dtype, row[at : at + count])
    verb = function(f"landed_{dtype}_{ROWS[row.dtype]}", level())
    return not verb(_address(source), count, row.data_ptr() + at * row.element_size())


def store_vector(vector: Tensor, row: Tensor) -> bool:
    """As `store_numbers`, of a whole contiguous vector (d,) on the CPU in one of the types of the wire."""
    if vector.shape != row.shape or vector.dtype not in ROWS or not vector.is_contiguous():
        raise ValueError(
            f"Expected a contiguous vector of {tuple(row.shape)}, found {tuple(vector.shape)} of "
            f"{vector.dtype}."
        )
    if library() is None or sys.byteorder != "little" or row.dtype not in ROWS or not row.is_contiguous():
        return store_numbers(vector.view(torch.uint8).numpy().data, 0, ROWS[vector.dtype], row)
    verb = function(f"landed_{ROWS[vector.dtype]}_{ROWS[row.dtype]}", level())
    return not verb(vector.data_ptr(), len(row), row.data_ptr())


def _counted(source: bytes | bytearray | memoryview, at: int, dtype: Wire, row: Tensor) -> int:
    """The number of elements of `source`.

    Raises:
        ValueError: they cannot be stored there.
    """
    size = memoryview(source).nbytes
    count, rest = divmod(size, SIZES[dtype])
    if rest:
        raise ValueError(f"Expected whole numbers of {SIZES[dtype]} bytes, found {size} bytes.")
    if row.dtype not in ROWS or row.device.type != "cpu" or row.dim() != 1 or not row.is_contiguous():
        raise ValueError(
            f"Expected one contiguous row of float32 or bfloat16 on the CPU, found {tuple(row.shape)} of "
            f"{row.dtype} on {row.device}."
        )
    if not 0 <= at <= len(row) - count:
        raise ValueError(f"{count} numbers from column {at} on do not fit into {len(row)} columns.")
    return count


def _address(source: bytes | bytearray | memoryview) -> int:
    address: int = np.frombuffer(source, np.uint8).__array_interface__["data"][0]
    return address


def _plainly(source: bytes | bytearray | memoryview, dtype: Wire, row: Tensor) -> bool:
    wire: np.ndarray[Any, Any] = np.frombuffer(source, "<u4" if dtype == "float32" else "<u2")
    narrow = row.dtype == torch.bfloat16
    to = row.view(torch.int16 if narrow else torch.int32).numpy().view(np.uint16 if narrow else np.uint32)
    finite = True
    for start in range(0, len(wire), BLOCK):
        bits = wire[start : start + BLOCK].astype(np.uint32)
        if dtype == "bfloat16":
            bits <<= 16
        bits[(bits & MAGNITUDE) < LEAST_NORMAL] = 0
        if narrow and dtype == "float32":
            bits = _rounded(bits)
        finite &= not bool(((bits & MAGNITUDE) >= INFINITE).any())
        to[start : start + BLOCK] = bits >> 16 if narrow else bits
    return finite


def _rounded(bits: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Float32 rounded to bfloat16, to nearest even, in the upper half of each; the lower is garbage."""
    nearest = bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))
    return np.where((bits & MAGNITUDE) > INFINITE, bits | np.uint32(0x40_0000), nearest)
