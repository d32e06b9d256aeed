"""A Gram matrix that is kept up to date, against one that is measured anew."""

from __future__ import annotations

import random
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Krum, Rows, RowsError
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import NotFinite, reference
from varangian.aggregators.streaming import updated as module
from varangian.aggregators.streaming.updated import UpdatedGram, worthwhile

N, D = 8, 300
TOLERANCE = 1e-5
"""Of a squared distance."""
ROUNDING = 1e-13
"""Of the squared norms of two points: a pair that is closer coincides for float64."""


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distances(products: Tensor) -> Tensor:
    """Squared distances of (x_1, ..., x_n, r) to each other, (n+1, n+1)."""
    n = len(products) - 1
    among = Gram.about(lambda: products, n).sqdist
    to_reference = products.diagonal()[:-1]
    out = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    out[:n, :n], out[:n, n], out[n, :n] = among, to_reference, to_reference
    return out


def direct(rows: Tensor, r: Tensor) -> Tensor:
    points = torch.cat([rows.double(), r[None].double()])
    return (points[:, None] - points).square().sum(dim=2)


def compare(found: Tensor, matrix: Tensor, r: Tensor) -> None:
    fresh = reference.gram(Rows.of(matrix), r)
    assert found.shape == fresh.shape
    assert torch.equal(found, found.T)
    lengths = torch.cat([matrix.double(), r[None].double()]).norm(dim=1)
    longest = torch.maximum(fresh.diagonal().clamp(min=0).sqrt(), lengths)
    wanted = direct(matrix, r)
    rounding = ROUNDING * (longest[:, None].square() + longest.square())
    assert ((distances(found) - wanted).abs() <= TOLERANCE * wanted + rounding).all()
    # What float32 products of blocks err by, as `blocked.KEPT` has it.
    assert ((found - fresh).abs() <= 1e-6 * longest[:, None] * longest).all()


def products_of(kept: UpdatedGram, matrix: Tensor, r: Tensor | None = None) -> Tensor:
    return kept.products(Rows.of(matrix), r)


def test_the_first_time_all_rows_are_measured():
    matrix, r = seeded(N, D), seeded(D, seed=1)
    compare(products_of(UpdatedGram(N), matrix, r), matrix, r)
    assert products_of(UpdatedGram(N), matrix)[-1].eq(0).all()


def scaled(row: Tensor, kind: str) -> Tensor:
    factors = {"plain": 1.0, "huge": 1e30, "tiny": 1e-25, "zero": 0.0}
    return row * factors[kind]


def test_hundreds_of_updates_leave_what_a_fresh_one_has():
    rng = random.Random(5)
    matrix, r = seeded(N, D), torch.zeros(D)
    kept = UpdatedGram(N)
    for step in range(300):
        for row in rng.sample(range(N), rng.randint(0, 3)):
            kind = rng.choice(["plain"] * 6 + ["huge", "tiny", "zero", "copy"])
            new = matrix[rng.randrange(N)].clone() if kind == "copy" else seeded(D, seed=step)
            matrix[row] = new if kind == "copy" else scaled(new, kind)
            kept.mark_replaced(row)
        found = products_of(kept, matrix, r)
        if step % 10 == 0:
            compare(found, matrix, r)
        r = matrix.median(dim=0).values
    matrix = seeded(N, D, seed=1001)
    for row in range(N):
        kept.mark_replaced(row)
    compare(products_of(kept, matrix, r := seeded(D, seed=1002)), matrix, r)


def test_a_huge_row_that_is_replaced_leaves_no_trace():
    matrix, r = seeded(N, D), seeded(D, seed=1)
    never, kept = UpdatedGram(N), UpdatedGram(N)
    products_of(never, matrix, r)
    sound = matrix[3].clone()
    matrix[3] = 1e30
    huge = products_of(kept, matrix, r)
    others = [i for i in range(N + 1) if i != 3]
    assert torch.equal(huge[others][:, others], products_of(UpdatedGram(N), matrix, r)[others][:, others])
    matrix[3] = sound
    kept.mark_replaced(3)
    never.mark_replaced(3)
    assert torch.equal(products_of(kept, matrix, r), products_of(never, matrix, r))


def test_only_what_was_replaced_is_measured_anew():
    matrix = seeded(N, D)
    kept = UpdatedGram(N)
    before = products_of(kept, matrix)
    matrix[2] = seeded(D, seed=1)
    matrix[5] = seeded(D, seed=2)
    kept.mark_replaced(2)  # and nobody was told of 5
    after = products_of(kept, matrix)
    same = torch.ones(N + 1, N + 1, dtype=torch.bool)
    same[2] = same[:, 2] = False
    assert torch.equal(after[same], before[same])
    assert (after[2, :N] != before[2, :N]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("common", [1.0, 30.0, 1e4, 1e6])
def test_distances_are_right_however_large_the_common_part(common: float, dtype: torch.dtype):
    """The rows and the reference move on together, and lie `common` times their spread from the origin."""
    far = common * seeded(D, seed=1).to(dtype)
    matrix = far + seeded(N, D).to(dtype)
    kept = UpdatedGram(N)
    r = far
    for step in range(20):
        far = far + 0.1 * seeded(D, seed=100 + step).to(dtype)
        matrix[step % N] = far + seeded(D, seed=200 + step).to(dtype)
        kept.mark_replaced(step % N)
        found = products_of(kept, matrix, r)
        wanted = direct(matrix, r)
        assert ((distances(found) - wanted).abs() <= TOLERANCE * wanted).all()
        r = matrix.mean(dim=0)


def test_a_fresh_one_is_measured_only_where_float64_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    asked = []
    real = module.backend_for

    def noted(rows: Rows) -> Any:
        asked.append(rows)
        return real(rows)

    monkeypatch.setattr(module, "backend_for", noted)
    for common, times in ((1e4, 0), (1e6, 1)):
        matrix = common * seeded(D, seed=1) + seeded(N, D)
        products_of(UpdatedGram(N), matrix, matrix.mean(dim=0))
        assert len(asked) == times


def test_a_row_that_is_not_finite_is_noticed_until_it_is_replaced():
    matrix, r = seeded(N, D), seeded(D, seed=1)
    kept = UpdatedGram(N)
    products_of(kept, matrix, r)
    sound = matrix.clone()
    for bad in (torch.nan, torch.inf):
        matrix[4, 7] = bad
        kept.mark_replaced(4)
        for _ in range(2):
            with pytest.raises(NotFinite):
                products_of(kept, matrix, r)
    matrix[4] = sound[4]
    compare(products_of(kept, matrix, r), matrix, r)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_other_types(dtype: torch.dtype):
    matrix, r = seeded(N, D).to(dtype), seeded(D, seed=1)
    kept = UpdatedGram(N)
    products_of(kept, matrix, r)
    matrix[1] = seeded(D, seed=2).to(dtype)
    kept.mark_replaced(1)
    compare(products_of(kept, matrix, r), matrix, r)


def test_float32_products_are_not_used_where_torch_may_shorten_them():
    matrix, r = seeded(N, D), seeded(D, seed=1)
    torch.set_float32_matmul_precision("medium")
    try:
        found = products_of(UpdatedGram(N), matrix, r)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.allclose(found, reference.gram(Rows.of(matrix), r), rtol=1e-12, atol=1e-9)


def test_it_does_not_matter_where_the_rows_lie_or_in_which_order_they_came():
    d, r = 9000, seeded(9000, seed=1)  # more than one block
    store = seeded(2 * N, d)
    order = [5, 0, 7, 2, 2, 9, 1, 4]  # two are the same row, and others lie between them
    together = Rows(tuple(store[i] for i in order))
    apart = Rows(tuple(store[i].clone() for i in order))
    one, other = UpdatedGram(N), UpdatedGram(N)
    for rows, kept, changed in ((together, one, (1, 6)), (apart, other, (6, 1))):
        kept.products(rows, r)
        for row in changed:
            kept.mark_replaced(row)
    found, wanted = one.products(together, r), other.products(apart, r)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-2)
    assert distances(found)[3, 4] == distances(wanted)[3, 4] == 0


def test_an_aggregator_takes_it():
    matrix, r = seeded(N, D), seeded(D, seed=1)
    matrix[6:] += 50
    kept = UpdatedGram(N)
    rows = Rows.of(matrix)
    aggregator = Aggregator(Krum(f=2, select=3))
    for step in range(4):
        matrix[step] = seeded(D, seed=step + 10)
        kept.mark_replaced(step)
        told = aggregator(rows, r, measured=partial(kept.products, rows, r))
        assert torch.equal(told.vector, aggregator(rows, r).vector)
        r = told.vector


def test_bad_calls():
    kept = UpdatedGram(3)
    with pytest.raises(RowsError, match=r"should be one of 3 rows\. Found 3"):
        kept.mark_replaced(3)
    with pytest.raises(RowsError, match=r"should be 3 rows, as at first\. Found 2"):
        kept.products(Rows.of(torch.ones(2, 4)))


def test_it_is_for_few_of_many():
    assert worthwhile(1000, 100)
    assert worthwhile(100, 2)
    assert not worthwhile(15, 1)
    assert not worthwhile(100, 100)


def test_the_benchmark_times_what_agrees(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    bench = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "bench_updated.py"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    with torch.random.fork_rng():
        assert bench["main"](["--case", "30", "2", "500", "--repeat", "1"]) == 0
    assert "30     2       500" in capsys.readouterr().out
