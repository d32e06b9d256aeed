"""The columnwise rules without a compiler: what the network in place gives is what sorting gives."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import Aggregator, Median, Rows, TrimmedMean
from varangian.aggregators.kernels import NotFinite, blocked, sorting_network
from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window

COUNTS = [*range(1, 18), 33, 50, 130]


def orders(n: int) -> Iterator[Order]:
    f = (n - 1) // 3
    yield Window((n - 1) // 2, n // 2 + 1)
    yield Window(f, n - f)
    yield Window(0, n)
    yield Window(n - 1, n)
    yield Nearest(n - f, (n - 1) // 2, n // 2 + 1)
    yield Nearest(n - f, f, n - f)
    yield Nearest((n + 2) // 3, 0, 1)
    yield Majority(0.25)


def found(order: Order, rows: Tensor) -> Tensor:
    return blocked.columnwise(order, None, Rows.of(rows), None)


def flushes() -> bool:
    return bool(torch.tensor(1e-40) * 1 == 0)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting_network, "WIDTH", 64)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("family", ["plain", "sparse", "lopsided"])
def test_is_what_sorting_gives(n: int, family: str) -> None:
    rows = kit.FAMILIES[family](n, 150)
    ordered = rows.sort(dim=0).values
    for order in orders(n):
        given, wanted = found(order, rows), order(ordered)
        if isinstance(order, Window):  # its values may be added in any order
            assert torch.allclose(given, wanted, rtol=0, atol=1e-6 * float(rows.abs().max()))
        else:
            assert torch.equal(given, wanted)


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_medians_have_the_bits_of_a_sorted_column(n: int) -> None:
    rows = torch.randn(n, 130)
    ordered = np.sort(rows.numpy(), axis=0)
    wanted = (ordered[(n - 1) // 2] + ordered[n // 2]) / np.float32(2)
    assert np.array_equal(found(Median().order(n), rows).numpy(), wanted)


@pytest.mark.parametrize("n", range(1, 9))
def test_networks_sort_zeros_and_ones(n: int) -> None:
    """And so everything (Knuth, 5.3.4, theorem Z)."""
    columns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).T
    ordered = columns.sort(dim=0).values
    for lo, hi in itertools.combinations(range(n + 1), 2):
        assert torch.equal(found(Window(lo, hi), columns), ordered[lo:hi].mean(dim=0))


def test_a_window_takes_fewer_steps_than_all_ranks() -> None:
    def steps(order: Order) -> int:
        return len(sorting_network.network(sorting_network._wishes(order, 15)).steps)

    assert steps(Window(7, 8)) < steps(Window(3, 12)) < steps(Nearest(12, 7, 8))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 149])
def test_notices_what_is_not_finite(value: float, place: int) -> None:
    rows = torch.randn(7, 150)
    rows[2, place] = value
    for order in orders(7):
        with pytest.raises(NotFinite):
            found(order, rows)
    dropped = Aggregator(TrimmedMean(f=2), backend="blocked")(rows).dropped
    assert dropped == (2,)


def test_sums_that_overflow_are_no_fault() -> None:
    rows = torch.full((5, 100), 3e38)
    for order in orders(5):
        assert torch.allclose(found(order, rows), order(rows))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_subnormal_numbers_are_zero(n: int) -> None:
    rows = torch.randn(n, 70)
    rows[0] = 1e-40
    zeroed = rows.clone()
    zeroed[0] = 0
    for order in orders(n):
        assert torch.equal(found(order, rows), found(order, zeroed))
    assert float(rows[0].max()) == pytest.approx(1e-40, rel=1e-4)


def test_screens_where_the_processor_cannot_read_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)
    rows = torch.randn(5, 70)
    assert torch.equal(found(Majority(1.0), rows), Majority(1.0)(rows))
    rows[0, 69] = 1e-40
    with pytest.raises(NotFinite):
        found(Majority(1.0), rows)


@pytest.mark.parametrize("before", [False, True])
def test_the_processor_reads_them_afterwards_as_before(before: bool) -> None:
    torch.set_flush_denormal(before)
    try:
        found(Window(2, 3), torch.randn(5, 70))
        assert flushes() == before
        with pytest.raises(NotFinite):
            found(Window(2, 3), torch.full((5, 70), torch.nan))
        assert flushes() == before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    rows = torch.randn(9, 1000)
    wanted = [found(order, rows) for order in orders(9)]
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(found(order, rows), w) for order, w in zip(orders(9), wanted, strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_any_form_are_not_written_to(dtype: torch.dtype) -> None:
    rows = torch.randn(6, 130).to(dtype)
    before, apart = rows.clone(), list(rows.clone().unbind())
    for order in orders(6):
        together = found(order, rows)
        assert together.dtype == dtype
        assert torch.equal(together, blocked.columnwise(order, None, Rows.of(apart), None))
    assert torch.equal(rows, before)
    assert torch.equal(torch.stack(apart), before)
