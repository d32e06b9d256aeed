"""The kernels in C: every version that this processor runs, on shapes that fit nothing."""

import ctypes
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import NNM, Aggregator, Gram, Mean, Median, Rows, TrimmedMean
from varangian.aggregators.kernels import NotFinite, native, reference
from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window
from varangian.aggregators.numeric.weighted_order import WeightedMedian, WeightedOrder, WeightedWindow

COUNTS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 50, 64, 70, 100]
LENGTHS = [1, 63, 257, 1271]
LEVELS = [level for level in (1, 3, 4) if level <= native.level()]

needs_library = pytest.mark.skipif(native.library() is None, reason="the kernels in C were not built")
pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty")]


@pytest.fixture(params=LEVELS, ids=lambda level: f"v{level}")
def every_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each version of the kernels that this processor can run."""
    monkeypatch.setattr(native, "level", lambda: request.param)


EVERY_LEVEL = pytest.mark.usefixtures("every_level")
N = pytest.mark.parametrize("n", COUNTS)
D = pytest.mark.parametrize("d", LENGTHS)


def rows_of(n: int, d: int) -> Rows:
    """Rows that do not lie in one matrix, and none at the start of a cache line."""
    return Rows(tuple(torch.randn(d + 1)[1:] for _ in range(n)))


def weights_of(m: int) -> tuple[float, ...]:
    """Weights of which the largest is some hundred times the smallest; nobody has half but where m < 3."""
    p = np.clip(np.random.default_rng(m).lognormal(sigma=1.5, size=m), None, 2.0 if m > 4 else 1.0)
    return tuple((p / p.sum()).tolist())


def orders(m: int) -> Sequence[Order | WeightedOrder]:
    most, p = max(1, m - m // 3), weights_of(m)
    return [
        Window(m // 2, m // 2 + 1),
        Window((m - 1) // 2, m // 2 + 1),
        Window(m // 5, m - m // 5),
        Window(0, 1),
        Window(m - 1, m),
        Window(0, m),
        Nearest(most, m // 2, m // 2 + 1),
        Nearest(1, m // 5, m - m // 5),
        Nearest(m, 0, m),
        Majority(0.25),
        WeightedWindow(p, 0.0),
        WeightedWindow(p, 0.3),
        WeightedMedian(p, midpoint=True),
        WeightedMedian(p, midpoint=False),
    ]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(found.double(), wanted.double(), rtol=1e-5, atol=2e-6)


@EVERY_LEVEL
@N
@D
@pytest.mark.parametrize("with_reference", [False, True])
def test_gram(n: int, d: int, with_reference: bool) -> None:
    rows, r = rows_of(n, d), torch.randn(d) if with_reference else None
    found, wanted = native.gram(rows, r), reference.gram(rows, r)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert torch.equal(found, found.T)


@EVERY_LEVEL
@pytest.mark.parametrize("n", COUNTS[1:])
@D
def test_gram_keeps_what_is_tiny_beside_the_norms(n: int, d: int) -> None:
    rows = Rows(tuple(1e4 + v for v in rows_of(n, d).vectors))
    found, wanted = (Gram.of(rows, None, backend).sqdist for backend in (native, reference))
    assert torch.allclose(found, wanted, rtol=1e-5)
    found, wanted = native.gram(rows, None), reference.gram(rows, None)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@EVERY_LEVEL
@N
@D
@pytest.mark.parametrize("points", [1, 2, 4, 5, 6, 11])
@pytest.mark.parametrize("with_reference", [False, True])
def test_combine(n: int, d: int, points: int, with_reference: bool) -> None:
    rows, r = rows_of(n, d), torch.randn(d) if with_reference else None
    coords = torch.rand(points, n + 1).double() / n
    assert_close(native.combine(coords, rows, r), reference.combine(coords, rows, r))


@EVERY_LEVEL
@N
@D
def test_columns(n: int, d: int) -> None:
    rows = rows_of(n, d)
    for order in orders(n):
        if n == 2 and isinstance(order, Nearest):
            continue  # both are as near to the midpoint, but for its rounding
        assert_close(
            native.columnwise(order, None, rows, None), reference.columnwise(order, None, rows, None)
        )


@EVERY_LEVEL
@N
@pytest.mark.parametrize("points", [1, 4, 5, 17, 50])
@pytest.mark.parametrize("with_reference", [False, True])
def test_columns_of_mixtures(n: int, points: int, with_reference: bool) -> None:
    d = 257
    rows, r = rows_of(n, d), torch.randn(d) if with_reference else None
    coords = torch.rand(points, n + 1).double() / n
    for order in orders(points):
        if isinstance(order, Nearest):
            continue  # which of two is nearer may hang on the last bit of a mixture
        assert_close(
            native.columnwise(order, coords, rows, r), reference.columnwise(order, coords, rows, r)
        )


@EVERY_LEVEL
@pytest.mark.parametrize("points", [1, 4, 5, 17, 50])
def test_nearest_of_mixtures(points: int) -> None:
    """With values of a few bits every sum is exact, and every tie is one."""
    rows = Rows.of(torch.randint(-8, 9, (9, 257)).float())
    coords = torch.randint(-4, 5, (points, 10)).double()
    for order in orders(points):
        assert_close(
            native.columnwise(order, coords, rows, None), reference.columnwise(order, coords, rows, None)
        )


@EVERY_LEVEL
@N
def test_ties_and_signed_zeros(n: int) -> None:
    rows = Rows.of(torch.randint(-1, 2, (n, 300)).float() * torch.randint(0, 2, (n, 1)).mul(2).sub(1))
    for order in orders(n):
        assert_close(
            native.columnwise(order, None, rows, None), reference.columnwise(order, None, rows, None)
        )


def by_the_book(p: Sequence[float], cut: float | None, column: Tensor) -> float:
    """The weighted trimmed mean of a column, or its weighted median where nothing is cut, in float64."""
    order = column.double().sort(stable=True).indices
    values, shares = column.double()[order].numpy(), np.array(p)[order.numpy()]
    ends = np.cumsum(shares)
    if cut is None:
        return float(values[np.searchsorted(ends, 0.5)])
    inside = np.clip(np.minimum(ends, 1 - cut) - np.maximum(ends - shares, cut), 0, None)
    return float(inside @ values / inside.sum())


@EVERY_LEVEL
@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 33, 48, 49, 64, 130])
def test_by_weight_is_what_books_say(n: int) -> None:
    rows, p = Rows.of(torch.randn(n, 90)), weights_of(n)
    columns = [*torch.stack(rows.vectors).unbind(1)]
    for cut in (0.0, 0.1, 0.45):
        found = native.columnwise(WeightedWindow(p, cut), None, rows, None)
        wanted = torch.tensor([by_the_book(p, cut, column) for column in columns])
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    found = native.columnwise(WeightedMedian(p, midpoint=True), None, rows, None)
    assert torch.equal(found, torch.tensor([by_the_book(p, None, column) for column in columns]))


@EVERY_LEVEL
@pytest.mark.parametrize("n", [1, 2, 5, 15, 21, 64])
@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_is_a_number_of_copies(n: int, tied: bool) -> None:
    rows = torch.randint(-2, 3, (n, 200)).float() if tied else torch.randn(n, 200)
    counts = torch.randint(1, 7, (n,))
    copies, total = Rows.of(rows.repeat_interleave(counts, dim=0)), int(counts.sum())
    p, out = tuple((counts.double() / total).tolist()), total // 3
    pairs: list[tuple[WeightedOrder, Window]] = [
        (WeightedWindow(p, out / total), Window(out, total - out)),
        (WeightedMedian(p, midpoint=True), Window((total - 1) // 2, total // 2 + 1)),
        (WeightedMedian(p, midpoint=False), Window((total - 1) // 2, (total - 1) // 2 + 1)),
    ]
    for by_weight, by_rank in pairs:
        found = native.columnwise(by_weight, None, Rows.of(rows), None)
        wanted = reference.columnwise(by_rank, None, copies, None)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_kernels_take_the_columns_of_rows_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows of less than float32 too, where the update is float32."""
    asked: list[str] = []

    def seen(verb: str, *args: object) -> int:
        asked.append(verb)
        return call(verb, *args)

    call = native._call
    monkeypatch.setattr(native, "_call", seen)
    rows, weights = torch.randn(9, 300), [*range(10, 19)]
    for aggregator in (
        Aggregator(TrimmedMean(f=2)),
        Aggregator(Median()),
        Aggregator(Median(), (NNM(f=2),)),
    ):
        aggregator(rows, weights=weights)
        assert asked.pop() == "weighted"
    Aggregator(Median())(rows.bfloat16(), weights=weights, into=torch.empty(300))
    assert asked.pop() == "weighted"


VERBS = {
    "gram": lambda rows: native.gram(rows, None),
    "combine": lambda rows: native.combine(torch.full((1, len(rows) + 1), 0.1).double(), rows, None),
    "median": lambda rows: native.columnwise(Window(len(rows) // 2, len(rows) // 2 + 1), None, rows, None),
    "nearest": lambda rows: native.columnwise(Nearest(1, 0, 1), None, rows, None),
    "majority": lambda rows: native.columnwise(Majority(1.0), None, rows, None),
    "by weight": lambda rows: native.columnwise(
        WeightedWindow(weights_of(len(rows)), 0.1), None, rows, None
    ),
    "weighted median": lambda rows: native.columnwise(
        WeightedMedian(weights_of(len(rows)), midpoint=True), None, rows, None
    ),
    "code": lambda rows: native.columnwise(Median().columnwise, None, rows, None),
    "mixtures": lambda rows: native.columnwise(
        Window(1, 2), torch.ones(3, len(rows) + 1).double(), rows, None
    ),
}
VERB = pytest.mark.parametrize("verb", VERBS)


@EVERY_LEVEL
@VERB
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [3, 16, 33])
def test_what_is_not_finite_is_noticed_wherever_it_is(verb: str, value: float, n: int) -> None:
    for row, column in product({0, n // 2, n - 1}, {0, 63, 64, 300}):
        rows = torch.randn(n, 301)
        rows[row, column] = value
        with pytest.raises(NotFinite):
            VERBS[verb](Rows.of(rows))
        assert VERBS[verb](Rows.of(rows.nan_to_num(0, 0, 0))).isfinite().all()


@EVERY_LEVEL
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "code"])  # which torch runs
def test_subnormal_numbers_are_zero(verb: str) -> None:
    rows = torch.randn(5, 300)
    rows[:, 100:200] *= 1e-41
    zeroed = rows.clone()
    zeroed[:, 100:200] = 0
    assert torch.equal(VERBS[verb](Rows.of(rows)), VERBS[verb](Rows.of(zeroed)))


@EVERY_LEVEL
@VERB
def test_subnormal_numbers_are_not_zero_to_others(verb: str) -> None:
    """The mode of the processor is this thread's own, and torch finds it as it was."""
    small = torch.full((8,), 1e-40)
    VERBS[verb](rows_of(3, 100))
    assert torch.equal(small * 0.5, torch.full((8,), 5e-41))
    assert (small * 0.5).any()


@EVERY_LEVEL
@pytest.mark.parametrize("n", [3, 17, 40])
def test_nothing_of_a_huge_value_that_is_left_out_is_left(n: int) -> None:
    f = (n - 1) // 3
    rows = torch.randn(n, 300)
    sound = rows[f:].clone()
    rows[:f] = 1e30
    p = (*[1e-3] * f, *[(1 - 1e-3 * f) / (n - f)] * (n - f))
    for order in (Window(0, n - f), Nearest(n - f, n // 4, n // 2)):
        found = native.columnwise(order, None, Rows.of(rows), None)
        assert torch.allclose(found, sound.mean(0), rtol=1e-5, atol=1e-6)
    found = native.columnwise(WeightedWindow(p, f * 1e-3), None, Rows.of(rows), None)
    wanted = reference.columnwise(WeightedWindow(p, f * 1e-3), None, Rows.of(rows.double()), None)
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [Mean(), Median(), TrimmedMean(f=2)], ids=repr)
def test_finite_rows_whose_sum_overflows_are_somebody_elses_work(rule: Mean) -> None:
    rows = torch.full((9, 70), 3e38)
    with pytest.raises(NotFinite):
        native.columnwise(Window(0, 9), None, Rows.of(rows), None)
    found = Aggregator(rule)(rows)
    assert not found.dropped
    assert torch.allclose(found.vector, rows[0])


def test_same_bits_on_one_thread_as_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SLICE", 512)
    rows, r = rows_of(7, 5 * 512 + 77), torch.randn(5 * 512 + 77)
    coords = torch.rand(3, 8).double()

    def all_of_it() -> Iterator[Tensor]:
        yield native.gram(rows, r)
        yield native.combine(coords, rows, r)
        for order in orders(3):
            yield native.columnwise(order, coords, rows, r)

    one = list(all_of_it())
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, all_of_it(), strict=True))


def test_many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SLICE", 512)
    rows, r = rows_of(17, 3 * 512 + 1), torch.randn(3 * 512 + 1)
    found, wanted = native.gram(rows, r), reference.gram(rows, r)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    coords = torch.rand(2, 18).double()
    assert_close(native.combine(coords, rows, r), reference.combine(coords, rows, r))
    order = Window(8, 9)
    assert torch.equal(
        native.columnwise(order, None, rows, None), reference.columnwise(order, None, rows, None)
    )


@EVERY_LEVEL
def test_nothing_is_written_past_the_end() -> None:
    """And nothing is read there: the rows end where memory holds NaN."""
    n, d = 6, 131
    store = torch.full((n, d + 64), torch.nan)
    store[:, :d] = torch.randn(n, d)
    rows = Rows(tuple(store[i, :d] for i in range(n)))
    assert VERBS["gram"](rows).isfinite().all()
    out = torch.full((d + 64,), 7.0)
    pointers = (ctypes.c_void_p * n)(*[v.data_ptr() for v in rows.vectors])
    assert native._call("majority", pointers, n, d, None, n, 1.0, out.data_ptr()) == 0
    assert (out[d:] == 7).all()
    assert (out[:d] != 7).all()


def test_rows_with_gaps() -> None:
    wide = torch.randn(4, 600)
    rows = Rows.of(wide[:, ::2])
    for verb in VERBS.values():
        assert torch.equal(verb(rows), verb(Rows.of(wide[:, ::2].contiguous())))
    r, coords = torch.randn(900)[::3], torch.rand(2, 5).double()
    assert torch.equal(native.gram(rows, r), native.gram(rows, r.contiguous()))
    assert torch.equal(native.combine(coords, rows, r), native.combine(coords, rows, r.contiguous()))


@pytest.mark.parametrize("n", [native.MOST_ROWS, native.MOST_ROWS + 1])
def test_more_rows_than_there_is_room_for_are_refused(n: int) -> None:
    rows = rows_of(n, 70)
    if n > native.MOST_ROWS:
        assert "at most" in str(native.refuses(rows))
    else:
        assert native.refuses(rows) is None
        coords = torch.rand(n, n + 1).double() / n
        r, order = torch.randn(70), Window(n // 2, n // 2 + 1)
        assert_close(
            native.columnwise(order, coords, rows, r), reference.columnwise(order, coords, rows, r)
        )


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_families(family: str) -> None:
    rows = Rows.of(kit.rows_of(family, n=13, d=333, dtype=torch.float32))
    found, wanted = native.gram(rows, None), reference.gram(rows, None)
    scale = wanted.diagonal().sqrt()
    assert ((found - wanted).abs() <= 1e-6 * scale[:, None] * scale).all()
    for order in orders(13):
        found, wanted = (k.columnwise(order, None, rows, None) for k in (native, reference))
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6 * float(rows.vectors[-1].abs().max()))
