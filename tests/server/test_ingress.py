"""The last look at a vector: what is provably invalid, and what becomes zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varangian.server.ingress import BLOCK, screened

TINY = torch.finfo(torch.float32).tiny
SUBNORMAL = float(np.float32(1e-40))


def bits(row: torch.Tensor) -> list[int]:
    return row.view(torch.int32).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 4])
def test_one_entry_that_is_not_finite_condemns_a_row(bad: float, place: int):
    row = torch.ones(2 * BLOCK + 5)
    row[place] = bad
    assert screened(row) == "not finite"


def test_every_kind_of_nan_is_found():
    quiet, signalling, negative = 0x7FC00001, 0x7F800001, -1
    for pattern in (quiet, signalling, negative):
        assert screened(torch.tensor([0, pattern], dtype=torch.int32).view(torch.float32)) == "not finite"


def test_subnormal_numbers_become_zero():
    row = torch.tensor([1.0, SUBNORMAL, -SUBNORMAL, TINY, -TINY, 1e-45])
    assert screened(row) is None
    assert bits(row) == bits(torch.tensor([1.0, 0.0, 0.0, TINY, -TINY, 0.0]))


def test_subnormal_numbers_are_found_in_every_block():
    row = torch.full((2 * BLOCK + 5,), SUBNORMAL)
    assert screened(row) is None
    assert not row.any()


def test_zeros_lose_their_sign():
    row = torch.tensor([-0.0, 0.0])
    assert screened(row) is None
    assert bits(row) == [0, 0]


@pytest.mark.parametrize("value", [1e38, -1e38, torch.finfo(torch.float32).max, 1e-30])
def test_finite_extremes_pass_unchanged(value: float):
    row = torch.tensor([value, 1.0])
    assert screened(row) is None
    assert row.tolist() == torch.tensor([value, 1.0]).tolist()


def test_half_of_a_worker_in_memory_is_screened_alone():
    matrix = torch.full((3, 4), float("nan"))
    matrix[1] = 1.0
    assert screened(matrix[1]) is None
    assert matrix[[0, 2]].isnan().all()


def test_float64_rows_have_their_own_subnormal_numbers():
    row = torch.tensor([1e-40, 1e-310], dtype=torch.float64)
    assert screened(row) is None
    assert row.tolist() == [1e-40, 0.0]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40))
def test_any_bytes_are_sound_or_refused(patterns: list[int]):
    """Whatever a worker sends: refused, or finite and without subnormal numbers; normal numbers stay."""
    row = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    before = row.numpy().copy()
    reason = screened(row)
    assert (reason is None) == bool(np.isfinite(before).all())
    if reason is None:
        size = np.abs(before)
        expected = np.where(size < np.float32(TINY), np.float32(0), before)
        assert row.numpy().tobytes() == expected.tobytes()
        assert screened(row) is None
        assert row.numpy().tobytes() == expected.tobytes()
