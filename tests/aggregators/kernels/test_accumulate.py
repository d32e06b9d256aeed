"""Rows that arrive in pieces give the bits of the whole."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples
from torch import Tensor

from varangian.aggregators import Gram, Rows, RowsError
from varangian.aggregators import rows as of_rows
from varangian.aggregators.kernels import (
    Backend,
    BackendRefused,
    GramAccumulator,
    NotFinite,
    blocked,
    native,
    reference,
)
from varangian.aggregators.kernels.accumulate import SLICE

N, SLICES = 5, 3
D = SLICES * SLICE + 1271
BUILT = [b for b in (native, blocked, reference) if b is not native or native.library()]
BACKEND = pytest.mark.parametrize("backend", BUILT, ids=lambda b: b.NAME)

CUTS = st.lists(st.booleans(), min_size=SLICES, max_size=SLICES)
"""After which slices a block ends."""


def blocks_of(rows: Tensor, cuts: Sequence[bool]) -> list[list[Tensor]]:
    at = [0, *[(i + 1) * SLICE for i, cut in enumerate(cuts) if cut], rows.shape[1]]
    # Copies: nothing may depend on where a piece lies in memory.
    return [[row[a:b].clone() for row in rows] for a, b in pairwise(at)]


def matrix() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


@BACKEND
@settings(max_examples=examples(8, few=3), deadline=None)
@given(cuts=CUTS, with_reference=st.booleans())
def test_same_bits_however_it_is_cut(backend: Backend, cuts: list[bool], with_reference: bool) -> None:
    rows, r = matrix(), torch.linspace(-1, 1, D) if with_reference else None
    accumulator = GramAccumulator(N, D, r, backend=backend.NAME)
    for block in blocks_of(rows, cuts):
        accumulator.take(block)
    assert accumulator.columns == D
    assert torch.equal(accumulator.products(), backend.gram(Rows.of(rows), r))


@BACKEND
@settings(max_examples=examples(8, few=3), deadline=None)
@given(
    cuts=CUTS,
    gone=st.dictionaries(st.integers(0, N - 1), st.integers(0, SLICES), max_size=N - 1),
    missing=st.booleans(),
)
def test_rows_that_are_removed_leave_no_trace(
    backend: Backend, cuts: list[bool], gone: dict[int, int], missing: bool
) -> None:
    """Some are removed before a block, others are missing in it; what came of them before was NaN."""
    rows = matrix()
    sent = rows.clone()
    sent[list(gone)] = torch.nan
    accumulator = GramAccumulator(N, D, backend=backend.NAME)
    blocks = blocks_of(sent, cuts)
    for turn, block in enumerate(blocks):
        out = [i for i, when in gone.items() if min(when, len(blocks) - 1) <= turn]
        if missing:
            accumulator.take([None if i in out else piece for i, piece in enumerate(block)])
            continue
        for i in out:
            accumulator.remove(i)
        accumulator.take(block)
    kept = [i for i in range(N) if i not in gone]
    assert accumulator.kept == tuple(kept)
    assert torch.equal(accumulator.products(), backend.gram(Rows.of(rows[kept]), None))


@BACKEND
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_rows_removed_late_leave_no_trace_where_rows_share_a_part(backend: Backend, offset: float) -> None:
    """The row that is removed may be the one from which the others were measured."""
    rows = matrix() + offset * torch.linspace(1, 2, D)
    for gone in range(N):
        accumulator = GramAccumulator(N, D, backend=backend.NAME)
        for block in blocks_of(rows, [True, True, True]):
            accumulator.take(block)
        accumulator.remove(gone)
        kept = [i for i in range(N) if i != gone]
        assert torch.equal(accumulator.centred(), backend.centred(Rows.of(rows[kept]), None))


@pytest.mark.skipif(native.library() is None, reason="the kernels in C were not built")
def test_pair_does_not_depend_on_other_rows() -> None:
    rows = torch.randn(14, 3000)
    whole = native.gram(Rows.of(rows), None)
    for kept in ([0, 13], [3, 4, 5, 6, 12], [*range(1, 14)]):
        index = [*kept, -1]
        assert torch.equal(native.gram(Rows.of(rows[kept]), None), whole[index][:, index])


@BACKEND
def test_common_part_is_gone_before_anything_is_multiplied(backend: Backend) -> None:
    rows = 1e4 + matrix()
    accumulator = GramAccumulator(N, D, backend=backend.NAME)
    for block in blocks_of(rows, [True, False, True]):
        accumulator.take(block)
    found = accumulator.centred()
    assert torch.equal(found, backend.centred(Rows.of(rows), None))
    wanted = torch.stack([(rows - row).double().square().sum(dim=1) for row in rows])
    assert torch.allclose(Gram.about(lambda: found, N).sqdist, wanted, rtol=1e-5)


@pytest.mark.skipif(native.library() is None, reason="the kernels in C were not built")
def test_row_that_is_not_finite_must_be_removed() -> None:
    accumulator = GramAccumulator(2, 3, backend="native")
    accumulator.take([torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])])
    with pytest.raises(NotFinite):
        accumulator.products()
    accumulator.remove(1)
    accumulator.remove(1)
    assert accumulator.products().tolist() == [[3.0, 0.0], [0.0, 0.0]]


def test_every_backend_starts_a_sum_at_a_slice() -> None:
    assert SLICE % of_rows.BLOCK == 0
    assert SLICE % native.SLICE == 0


ones = torch.ones


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ([ones(7)], "should have 2 pieces"),
        ([ones(7), ones(7)], f"multiple of {SLICE} columns, or the {SLICE + 9} that are left. Found 7"),
        ([ones(2 * SLICE), ones(2 * SLICE)], "multiple of"),
        ([ones(SLICE), ones(9)], r"`rows\[1\]` should have"),
    ],
)
def test_blocks_that_do_not_fit(block: list[Tensor], sentence: str) -> None:
    accumulator = GramAccumulator(2, SLICE + 9)
    with pytest.raises(RowsError, match=sentence):
        accumulator.take(block)
    accumulator.take([ones(SLICE), ones(SLICE)])
    accumulator.take([ones(9), ones(9)])
    assert (accumulator.products()[:2, :2] == SLICE + 9).all()


def test_another_type_half_way() -> None:
    accumulator = GramAccumulator(1, SLICE + 9)
    accumulator.take([ones(SLICE)])
    with pytest.raises(RowsError, match=r"should be torch\.float32, as those before it"):
        accumulator.take([ones(9).double()])


def test_nothing_to_answer_with() -> None:
    accumulator = GramAccumulator(2, SLICE + 9)
    with pytest.raises(RowsError, match="Found 0"):
        accumulator.products()
    accumulator.take([ones(SLICE), None])
    with pytest.raises(RowsError, match=f"Found {SLICE}"):
        accumulator.products()
    accumulator.take([None, None])
    with pytest.raises(RowsError, match="Found none that was not removed"):
        accumulator.products()


def test_reference_and_backend_must_fit() -> None:
    with pytest.raises(RowsError, match="should be"):
        GramAccumulator(2, 9, ones(8))
    with pytest.raises(BackendRefused, match="float64"):
        GramAccumulator(1, 9, backend="blocked").take([ones(9).double()])
