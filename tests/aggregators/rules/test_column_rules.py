"""Rules that reduce each coordinate: by hand, against textbook code, and at the ends of the float range."""

from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from tests.aggregators import kit

from varangian.aggregators import (
    RULES,
    Aggregator,
    MeaMed,
    Median,
    Phocas,
    SignMajority,
    TrimmedMean,
    aggregator_from,
)
from varangian.aggregators.base import Columnwise, Ordered
from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window

# specification, f, one column, the value
TABLE = {
    "meamed": ("meamed", 1, [1, 2, 4, 9], 7 / 3),  # median 3, and 9 is 6 away
    "meamed, both ends go": ("meamed", 2, [-9, 1, 2, 3, 7], 2),
    "meamed, low end goes": ("meamed", 1, [-9, 2, 3], 2.5),
    "meamed, nothing goes": ("meamed", 0, [-9, 2, 10], 1),
    "meamed, equally near": ("meamed", 1, [5, 0, -5], -2.5),
    "phocas": ("phocas", 1, [0, 1, 5, 6, 20], 3),  # trimmed mean 4
    "phocas, about 5": ("phocas", 2, [-2, 1, 2, 3, 10, 11, 12], 5.4),
    "meamed of the same, about 3": ("meamed", 2, [-2, 1, 2, 3, 10, 11, 12], 2.8),
    "phocas, low end goes": ("phocas", 1, [-60, 0, 1, 2, 3], 1.5),
    "sign majority": ("sign_majority", 1, [0.1, 0.2, -9], 1),
    "sign majority, tie": ("sign_majority", 0, [3, -1], 0),
    "sign majority, zeros do not vote": ("sign_majority", 1, [0, 0, 0, 0, -2], -1),
    "sign majority, scaled": ({"sign_majority": {"scale": 0.25}}, 1, [-1, -2, 5], -0.25),
    "median, lower": ({"median": {"convention": "lower"}}, 1, [1, 2, 10, 4], 2),
    "median, lower of an odd number": ({"median": {"convention": "lower"}}, 1, [1, 2, 10], 2),
}


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value(case: str, dtype: torch.dtype) -> None:
    spec, f, column, value = TABLE[case]
    kit.assert_values(spec, f, [[entry] for entry in column], None, [value], None, dtype)


def nearest_to(rows: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """The mean of the values nearest to the centre of each column; of equally near ones the smaller."""
    columns = []
    for values, middle in zip(rows.T, centre, strict=True):
        columns.append(np.mean(sorted(values, key=lambda v: (abs(v - middle), v))[:count]))
    return np.array(columns)


def trimmed(rows: np.ndarray, f: int) -> np.ndarray:
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def majority(rows: np.ndarray) -> np.ndarray:
    positive, negative = (rows > 0).sum(axis=0), (rows < 0).sum(axis=0)
    return np.where(positive > negative, 1.0, np.where(negative > positive, -1.0, 0.0))


def of(name: str, f: int) -> Aggregator:
    return aggregator_from(name, "aggregator", f=f)


TEXTBOOK: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "meamed": lambda rows, f: nearest_to(rows, np.median(rows, axis=0), len(rows) - f),
    "phocas": lambda rows, f: nearest_to(rows, trimmed(rows, f), len(rows) - f),
    "sign_majority": lambda rows, f: majority(rows),
    "trimmed_mean": trimmed,
    "median": lambda rows, f: np.median(rows, axis=0),
}


@pytest.mark.parametrize("name", TEXTBOOK)
@pytest.mark.parametrize("family", kit.FAMILIES)
@pytest.mark.parametrize(("n", "f"), [(1, 0), (3, 1), (5, 2), (8, 3), (15, 3), (16, 7), (50, 10)])
def test_textbook(name: str, family: str, n: int, f: int) -> None:
    rows = kit.rows_of(family, n)
    wanted = torch.from_numpy(TEXTBOOK[name](rows.cpu().numpy(), f))
    kit.assert_near(of(name, f)(rows).vector.cpu(), wanted, 1e-13, rows.cpu())


class TestClaims:
    @pytest.mark.parametrize("rule", [MeaMed(f=3), Phocas(f=3)])
    @pytest.mark.parametrize("seed", range(5))
    def test_no_farther_from_the_centre_than_an_honest_value(
        self, rule: MeaMed | Phocas, seed: int
    ) -> None:
        """Xie et al.: there are n - f honest values, so the n - f nearest are no farther than those."""
        generator = kit.rng(seed)
        rows = torch.randn(15, 200, generator=generator).double()
        rows[12:] = 10.0 ** (seed - 2) * torch.randn(3, 200, generator=generator)
        about = Median() if isinstance(rule, MeaMed) else TrimmedMean(f=3)
        centre = Aggregator(about)(rows).vector
        farthest = (rows[:12] - centre).abs().amax(dim=0)
        assert ((Aggregator(rule)(rows).vector - centre).abs() <= farthest + 1e-12).all()

    def test_each_column_may_have_its_own_liars(self) -> None:
        """Xie et al., dimensional resilience: f values of every column are wrong, and no row is right."""
        rows = torch.randn(9, 9).double()
        wrong = torch.stack([torch.arange(9).roll(shift) < 2 for shift in range(9)])
        for rule in (MeaMed(f=2), Phocas(f=2)):
            found = Aggregator(rule)(rows.masked_fill(wrong, 1e12)).vector
            assert found.abs().max() < 3

    def test_fewer_than_half_cannot_turn_a_unanimous_vote(self) -> None:
        """Bernstein et al., theorem 2: the adversaries invert their signs, and are fewer than half."""
        honest = torch.randn(1, 300).expand(8, 300)
        rows = torch.cat([honest, -1e30 * honest[:7]])
        assert torch.equal(Aggregator(SignMajority())(rows).vector, honest[0].sign())

    def test_lower_median_is_torch_median(self) -> None:
        for n in (4, 5, 16):
            rows = kit.plain(n, 30)
            found = Aggregator(Median(convention="lower"))(rows).vector
            assert torch.equal(found, rows.median(dim=0).values)


class TestDescriptions:
    @pytest.mark.parametrize("m", range(1, 7))
    def test_nearest_on_all_small_columns(self, m: int) -> None:
        """Ties and all: every multiset of 0, 1, 2, 3, 7, in an order of its own."""
        columns = torch.tensor(list(combinations_with_replacement([0.0, 1.0, 2.0, 3.0, 7.0], m))).T.double()
        block = columns[torch.randperm(m)]
        for lo in range(m):
            for hi in range(lo + 1, m + 1):
                centre = columns[lo:hi].numpy().sum(axis=0) / (hi - lo)
                for count in range(1, m + 1):
                    found = Nearest(count, lo, hi)(block)
                    assert np.allclose(found, nearest_to(block.numpy(), centre, count), atol=1e-12)

    @pytest.mark.parametrize("m", [1, 2, 5, 8])
    def test_window(self, m: int) -> None:
        block = torch.randn(m, 50).double()
        for lo in range(m):
            for hi in range(lo + 1, m + 1):
                wanted = block.sort(dim=0).values[lo:hi].mean(dim=0)
                assert torch.allclose(Window(lo, hi)(block), wanted, atol=1e-14)

    def test_every_rule_that_has_one_is_it(self) -> None:
        found = 0
        for name in RULES:
            rule = kit.built(name).rule
            if isinstance(rule, Ordered):
                found += 1
                block = kit.plain(15, 33)
                assert torch.equal(rule.columnwise(block), rule.order(15)(block))
            else:
                assert not isinstance(rule, Columnwise), f"{name} should say what it does as an `Order`"
        assert found >= 6

    @pytest.mark.parametrize("order", [Window(1, 4), Window(2, 3), Nearest(3, 2, 3), Majority(1.0)])
    def test_block_is_not_written_to(self, order: Order) -> None:
        block = torch.randn(5, 20)
        before = block.clone()
        order(block)
        assert torch.equal(block, before)


class TestEndsOfTheFloatRange:
    """The definition has no overflow where the result is a float: neither a sum nor a distance may."""

    COLUMNS = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [-1.0, -1.0, -1.0, -1.0, -1.0],
            [1.0, 1.0, -1.0, 0.0, 1.0],
            [-1.0, -0.9, 0.8, 0.9, 1.0],
            [0.5, 0.6, 0.7, 0.8, 0.95],
            [-1.0, 1.0, 1e-30, 0.0, -1e-38],
            [1e-38, 2e-38, 1e-30, 1.0, 1.0],
        ],
        dtype=torch.float64,
    ).T

    @pytest.mark.parametrize(
        "order", [Window(0, 5), Window(1, 3), Nearest(3, 2, 3), Nearest(4, 1, 4), Nearest(1, 0, 5)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_no_overflow(self, order: Order, dtype: torch.dtype) -> None:
        largest = torch.finfo(dtype).max
        block = (self.COLUMNS * largest).clamp(-largest, largest).to(dtype)
        wanted = order(block.double() / largest)
        found = order(block)
        assert found.isfinite().all()
        assert torch.allclose(found.double() / largest, wanted, rtol=0, atol=4 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("rule", [MeaMed(f=2), Phocas(f=2), TrimmedMean(f=2), Median()])
    def test_what_is_left_out_leaves_no_trace(self, rule: Columnwise) -> None:
        """A sum from which the far values are subtracted again would keep their rounding."""
        rows = torch.randn(9, 500)
        aggregates = []
        for far in (1e4, 1e30, 3e38):
            rows[3], rows[7] = far, -far
            aggregates.append(Aggregator(rule)(rows).vector)
        assert torch.equal(aggregates[0], aggregates[1])
        assert torch.equal(aggregates[0], aggregates[2])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_unanimous_largest(self, dtype: torch.dtype) -> None:
        """Even when all shares are rounded up."""
        for m in range(1, 51):
            block = torch.full((m, 2), torch.finfo(dtype).max, dtype=dtype)
            for order in (Window(0, m), Nearest(m, 0, m), Nearest((m + 1) // 2, 0, 1)):
                assert torch.allclose(order(block), block[0], rtol=m * torch.finfo(dtype).eps)


def test_fields() -> None:
    for name in ("meamed", "phocas"):
        assert "it needs n >= 2 f + 1, 7 for f = 3, and n is 6" in str(of(name, 3).requires(6))
        assert of(name, 3).requires(7) is None
    with pytest.raises(ValueError, match="`scale` should be positive"):
        SignMajority(scale=0.0)


def test_subnormal_values_have_no_vote() -> None:
    tiny = torch.finfo(torch.float32).tiny
    rows = torch.tensor([[tiny / 2], [tiny / 2], [-tiny]])
    assert Aggregator(SignMajority())(rows).vector.tolist() == [-1]


def test_result_is_in_the_middle_of_what_was_sent() -> None:
    values = (rows := kit.lopsided(15, 300)).sort(dim=0).values
    found = Aggregator(TrimmedMean(f=4))(rows).vector
    assert ((found >= values[4]) & (found <= values[10])).all()
