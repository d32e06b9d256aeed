"""Numbers off the wire into a row: the same bits from every version, wherever they lie."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from varangian.aggregators.kernels import ingress, library
from varangian.aggregators.kernels.ingress import BLOCK, Wire, store_numbers, store_vector

VERSIONS = [0, *(level for level in (1, 3, 4) if level <= library.level())]
"""Without the compiler, and those of the compiled versions that this processor can run."""
WIRES: tuple[Wire, ...] = ("float32", "bfloat16")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROW = pytest.mark.parametrize("kind", TYPES.values(), ids=list(TYPES))
WIRE = pytest.mark.parametrize("wire", WIRES)
SMALL = (0x0, 0x1, 0x7FFFFF, 0x80000000, 0x807FFFFF)
SOUND = (0x800000, 0x80800001, 0x3F800000, 0x3F808000, 0x3F818000, 0xBF818001, 0x7F7F7FFF)
STRANGE = (0x7F800000, 0xFF800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00001, 0xFFFFFFFF)


def by_each(source: bytes | memoryview, wire: Wire, row: Tensor, at: int = 0) -> tuple[bool, Tensor]:
    """What every version says and leaves, which must be the same."""
    found: list[tuple[bool, Tensor]] = []
    for version in VERSIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingress, "level", lambda version=version: version)
            if not version:
                patch.setattr(ingress, "library", lambda: None)
            to = row.clone()
            found.append((store_numbers(source, at, wire, to), to))
    first = found[0]
    assert all(said == first[0] and bits(to) == bits(first[1]) for said, to in found)
    return first


def bits(row: Tensor) -> list[int]:
    return row.view(torch.int16 if row.dtype == torch.bfloat16 else torch.int32).tolist()


def packed(patterns: tuple[int, ...] | list[int], wire: Wire) -> bytes:
    """Float32 patterns; of which bfloat16 is the upper half."""
    if wire == "float32":
        return struct.pack(f"<{len(patterns)}I", *patterns)
    return struct.pack(f"<{len(patterns)}H", *(pattern >> 16 for pattern in patterns))


def sent(vector: Tensor, wire: Wire) -> bytes:
    return vector.to(TYPES[wire]).view(torch.uint8).numpy().tobytes()


@WIRE
@ROW
@pytest.mark.parametrize("d", [1, 15, 64, 257, 2 * BLOCK + 77])
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_numbers_are_stored_where_they_belong_and_nowhere_else(
    wire: Wire, kind: torch.dtype, d: int, offset: int
) -> None:
    vector = torch.randn(d)
    source = memoryview(bytes(offset) + sent(vector, wire) + b"end")[offset:-3]
    sound, row = by_each(source, wire, torch.full((d + 8,), 7.0, dtype=kind), at=3)
    assert sound
    assert bits(row[3:-5]) == bits(vector.to(TYPES[wire]).to(kind))
    assert (row[:3] == 7).all()
    assert (row[-5:] == 7).all()


@WIRE
@ROW
def test_subnormal_numbers_and_zeros_become_zero(wire: Wire, kind: torch.dtype) -> None:
    sound, row = by_each(packed(SMALL, wire), wire, torch.ones(len(SMALL), dtype=kind))
    assert sound
    assert bits(row) == [0] * len(SMALL)


@WIRE
@ROW
@pytest.mark.parametrize("pattern", STRANGE, ids=hex)
@pytest.mark.parametrize("place", [0, 63, BLOCK, BLOCK + 6])
def test_what_is_not_finite_is_stored_and_noticed(
    wire: Wire, kind: torch.dtype, pattern: int, place: int
) -> None:
    patterns = [0x3F800000] * (BLOCK + 7)
    patterns[place] = pattern
    sound, row = by_each(packed(patterns, wire), wire, torch.zeros(BLOCK + 7, dtype=kind))
    assert not sound
    wanted = torch.ones(BLOCK + 7, dtype=torch.bool)
    wanted[place] = False
    assert torch.equal(row.isfinite(), wanted)
    if pattern & 0x7FFFFF and (wire == "float32" or pattern & 0x7F0000):
        assert row[place].isnan()


def test_a_number_that_overflows_as_it_is_rounded_is_noticed() -> None:
    largest = packed([0x7F7FFFFF], "float32")
    assert by_each(largest, "float32", torch.zeros(1))[0]
    sound, row = by_each(largest, "float32", torch.zeros(1, dtype=torch.bfloat16))
    assert not sound
    assert row.isinf()
    assert by_each(packed([0x7F7F7FFF], "float32"), "float32", torch.zeros(1, dtype=torch.bfloat16))[0]


@ROW
@given(data=st.data())
def test_any_bytes(kind: torch.dtype, data: st.DataObject) -> None:
    """As if the numbers were converted by torch after they were screened as float32."""
    anything = st.one_of(st.sampled_from(SMALL + SOUND + STRANGE), st.integers(0, 2**32 - 1))
    patterns = data.draw(st.lists(anything, min_size=1, max_size=40))
    wire = data.draw(st.sampled_from(WIRES))
    sound, row = by_each(packed(patterns, wire), wire, torch.zeros(len(patterns), dtype=kind))
    kept = patterns if wire == "float32" else [pattern & 0xFFFF0000 for pattern in patterns]
    wanted = torch.tensor(kept, dtype=torch.uint32).view(torch.float32)
    finite = bool(wanted.isfinite().all())
    wanted[wanted.abs() < torch.finfo(torch.float32).tiny] = 0.0
    assert sound == bool(row.isfinite().all())
    if finite:
        assert bits(row) == bits(wanted.to(kind))
    else:
        assert not sound


def test_nothing_at_all() -> None:
    assert by_each(b"", "float32", torch.zeros(3), at=3)[0]


@pytest.mark.parametrize(
    ("source", "at", "row", "sentence"),
    [
        (bytes(7), 0, torch.zeros(9), "whole numbers of 4 bytes, found 7"),
        (bytes(12), 7, torch.zeros(9), "3 numbers from column 7 on do not fit into 9 columns"),
        (bytes(4), -1, torch.zeros(9), "do not fit"),
        (bytes(40), 0, torch.zeros(9), "do not fit"),
        (bytes(4), 0, torch.zeros(9, dtype=torch.float64), "float64"),
        (bytes(4), 0, torch.zeros(9)[::2], "contiguous"),
        (bytes(4), 0, torch.zeros(3, 3), "one contiguous row"),
    ],
)
def test_what_does_not_fit_is_refused(source: bytes, at: int, row: Tensor, sentence: str) -> None:
    before = row.clone()
    with pytest.raises(ValueError, match=sentence):
        store_numbers(source, at, "float32", row)
    assert torch.equal(row, before)


@WIRE
@ROW
@pytest.mark.parametrize("version", VERSIONS)
def test_a_tensor_is_stored_as_its_bytes_are(wire: Wire, kind: torch.dtype, version: int, monkeypatch):
    monkeypatch.setattr(ingress, "level", lambda: version)
    if not version:
        monkeypatch.setattr(ingress, "library", lambda: None)
    for patterns in (SMALL + SOUND, SOUND + STRANGE):
        vector = torch.frombuffer(bytearray(packed(patterns, wire)), dtype=TYPES[wire])
        one, other = torch.ones(2, len(vector), dtype=kind)
        assert store_vector(vector, one) is store_numbers(packed(patterns, wire), 0, wire, other)
        assert bits(one) == bits(other)


@pytest.mark.parametrize("vector", [torch.ones(2), torch.ones(3).double(), torch.ones(6)[::2]])
def test_a_tensor_that_is_no_row_is_refused(vector: Tensor):
    with pytest.raises(ValueError, match="Expected a contiguous vector"):
        store_vector(vector, torch.ones(3))
