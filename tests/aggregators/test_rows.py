"""Inputs that count as n vectors, and errors about those that do not."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from tests.collecting import uncollected

from varangian.aggregators import Rows, RowsError


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "`rows` should hold at least one vector. Found none."),
        (torch.empty(0, 3), "`rows` should hold at least one vector. Found none."),
        (torch.ones(3), "`rows[0]` should be a flat vector. Found shape ()."),
        (torch.ones(2, 2, 2), "`rows[0]` should be a flat vector. Found shape (2, 2)."),
        (torch.ones(2, 0), "`rows[0]` should have at least one entry. Found none."),
        ([torch.ones(3), torch.ones(4)], "`rows[1]` should have 3 entries, as `rows[0]`. Found 4."),
        (
            [torch.ones(3), torch.ones(3).double()],
            "`rows[1]` should be torch.float32 on cpu, as `rows[0]`. Found torch.float64 on cpu.",
        ),
        (
            [torch.ones(3), torch.ones(3, device="meta")],
            "`rows[1]` should be torch.float32 on cpu, as `rows[0]`. Found torch.float32 on meta.",
        ),
        (
            torch.ones(2, 3, dtype=torch.int64),
            "`rows[0]` should be one of float16, bfloat16, float32, float64. Found torch.int64.",
        ),
        (
            np.ones((2, 3), dtype=np.complex64),
            "`rows[0]` should be one of float16, bfloat16, float32, float64. Found torch.complex64.",
        ),
    ],
)
def test_refused(given: Any, sentence: str) -> None:
    with pytest.raises(RowsError) as caught:
        Rows.of(given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("given", [["a", "b"], [None], np.array([["x"]]), [object()]])
def test_not_numbers(given: Any) -> None:
    with pytest.raises(RowsError, match="should be a tensor or an array of numbers"):
        Rows.of(given)


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(4, 6),
        torch.ones(4, 9)[:, 2:8],
        torch.ones(8, 6)[::2],
        np.ones((4, 6), dtype=np.float32),
        list(torch.ones(4, 6)),
    ],
    ids=["matrix", "some columns", "every second row", "array", "rows of a matrix"],
)
def test_rows_of_one_storage_are_read_without_copies(given: Any) -> None:
    rows = Rows.of(given)
    assert rows.block(1, 4).data_ptr() == rows.vectors[0][1:].data_ptr()


@pytest.mark.parametrize(
    "given",
    [
        [torch.ones(6) for _ in range(4)],
        torch.ones(6, 4).T,
        [torch.ones(4, 6)[i] for i in (0, 1, 1, 3)],
        [*torch.ones(4, 6)][::-1],
        torch.arange(9.0).as_strided((4, 6), (1, 1)),
    ],
    ids=["list", "column-major", "repeated", "reversed", "overlapping"],
)
def test_other_rows_are_read_too(given: Any) -> None:
    wanted = torch.stack([*given])
    assert torch.equal(Rows.of(given).block(1, 4), wanted[:, 1:4])


def test_block_is_in_the_working_type() -> None:
    assert Rows.of(torch.ones(2, 3).half()).block(0, 2).dtype == torch.float32
    assert Rows.of(torch.ones(2, 3).double()).block(0, 2).dtype == torch.float64


def test_blocks_cover_every_column_once() -> None:
    rows = Rows.of(torch.arange(22.0).view(2, 11))
    parts = [block for _, block in rows.blocks(4)]
    assert [part.shape[1] for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts, dim=1), torch.arange(22.0).view(2, 11))


def test_kept_rows() -> None:
    rows = Rows.of(torch.arange(8.0).view(4, 2))
    assert torch.equal(rows.keep([1, 3]).block(0, 2), torch.tensor([[2.0, 3], [6, 7]]))
    assert rows.keep([0, 1, 2, 3]) is rows


def test_float16_array_and_plain_numbers() -> None:
    assert Rows.of(np.ones((2, 3), dtype=np.float16)).dtype == torch.float16
    assert Rows.of([[1.0, 2.0], [3.0, 4.0]]).d == 2


def test_rows_are_freed_without_the_garbage_collector():
    rows = Rows.of(torch.ones(3, 4))
    assert rows.contiguous is rows
    assert Rows.of(torch.ones(4, 3).T).contiguous.vectors[0].is_contiguous()
    with uncollected():
        gone = weakref.ref(rows)
        del rows
        assert gone() is None
