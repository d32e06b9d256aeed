"""Received bytes to columns of a row: conversion and check, by the encoding of the payload."""

from __future__ import annotations

import torch
from torch import Tensor

from varangian.aggregators.kernels.ingress import store_numbers, store_vector
from varangian.protos.payloads.encoding import FLOAT32, Encoding
from varangian.protos.payloads.int8_blocks import (
    BLOCK,
    BLOCK_BYTES,
    SCALE,
    STEP,
    block_bytes,
    decode_blocks,
)


def store_columns(
    source: bytes | bytearray | memoryview, encoding: Encoding, column: int, row: Tensor, entry: int
) -> bool:
    """Store units of a payload in a row; returns whether all of their numbers are finite.

    Args:
        source: whole units, one after the other.
        encoding: of the payload.
        column: where the first of them begins.
        row: (k,), in any type of rows.
        entry: of this column in the row.
    """
    data = memoryview(source)
    rounded = max(0, encoding.rounded - column)
    border = min(len(data), encoding.offset(column + rounded) - encoding.offset(column))
    finite = True
    if border:
        finite = _store(data[:border], encoding, row, entry)
        entry += encoding.columns(encoding.offset(column) + border) - column
    if border < len(data):
        finite &= store_numbers(data[border:], entry, FLOAT32, row)
    return finite


def _store(data: memoryview, encoding: Encoding, row: Tensor, entry: int) -> bool:
    """Units of numbers in the type of the wire."""
    if encoding.dtype != "int8":
        return store_numbers(data, entry, encoding.dtype, row)
    count = len(data) - SCALE * -(-len(data) // BLOCK_BYTES)
    to = row[entry : entry + count]
    if row.dtype == torch.float32:
        return decode_blocks(data, to.numpy())
    finite = True
    for at in range(0, count, STEP * BLOCK):
        part = torch.empty(min(STEP * BLOCK, count - at), dtype=torch.float32)
        start = block_bytes(at)
        finite &= decode_blocks(data[start : start + block_bytes(len(part))], part.numpy())
        finite &= store_vector(part, to[at : at + len(part)])
    return finite
