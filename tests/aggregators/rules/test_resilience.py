"""(f, kappa)-robustness, for every rule that claims a kappa: on random rounds and on those of an adversary.

|F(x) - mean_S|^2 <= kappa / |S| sum_S |x_i - mean_S|^2 for every S of n - f rows.
"""

import math
from collections.abc import Iterator
from itertools import combinations, product

import pytest
import torch
from tests.aggregators import kit
from tests.extent import everything, examples
from torch import Tensor

from varangian.aggregators import (
    ARC,
    MIXINGS,
    NNM,
    RULES,
    Aggregate,
    Aggregator,
    Bucketing,
    CenteredClipping,
    Conserving,
    Flag,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Resilient,
    TrimmedMean,
    aggregator_from,
)

SIZES = ((7, 1), (9, 3))
CLAIM = [name for name in RULES if aggregator_from(name, "a", f=1).kappa(9) is not None]
VARIANTS: dict[str, object] = {name: name for name in CLAIM} | {
    "krum byzfl": {"krum": {"convention": "byzfl"}},
    "multi_krum byzfl": {"multi_krum": {"convention": "byzfl"}},
    "krum of two": {"krum": {"select": 2}},
    "median lower": {"median": {"convention": "lower"}},
}
MIX = {"": [], "nnm, ": ["nnm"], "arc, ": ["arc"], "arc, nnm, ": ["arc", "nnm"]}
EVERY: dict[str, object] = {
    mix + name: {"mix": parts, "rule": rule}
    for (mix, parts), (name, rule) in product(MIX.items(), VARIANTS.items())
}


MISMATCHED: dict[str, object] = {
    "smea": {"smea": {"f": 3}},
    "trimmed_mean": {"trimmed_mean": {"f": 3}},
    "krum": {"krum": {"f": 3}},
    "nnm, trimmed_mean": {"mix": [{"nnm": {"f": 3}}], "rule": "trimmed_mean"},
    "nnm, trimmed_mean of more": {"mix": ["nnm"], "rule": {"trimmed_mean": {"f": 3}}},
    "arc, median": {"mix": [{"arc": {"f": 3}}], "rule": "median"},
}
"""Parts that were told a larger f than the aggregator."""


def subsets(n: int, f: int) -> Tensor:
    """(C(n, f), n): each of n - f rows, as shares of their mean."""
    kept = torch.tensor(list(combinations(range(n), n - f)))
    return torch.zeros(len(kept), n).double().scatter(1, kept, 1 / (n - f))


def ratio(aggregator: Aggregator, rows: Tensor, f: int) -> float:
    """The least kappa for which these rows are no counterexample."""
    shares = subsets(len(rows), f)
    means = shares @ rows
    distances = (rows - means[:, None]).square().sum(dim=2)
    variance = (shares * distances).sum(dim=1)
    error = (aggregator(rows).vector - means).square().sum(dim=1)
    # Where all rows of a subset are one, the aggregate is that row but for rounding.
    rounding = 1e-18 * rows.square().sum(dim=1).max()
    return float(((error - rounding).clamp(min=0) / variance.clamp(min=rounding)).max())


def two_camps(n: int, f: int) -> Tensor:
    """f rows are 1, and the others 0. Whoever answers 0 has a kappa of f / (n - 2 f) here, others none."""
    return (torch.arange(n) < f).double()[:, None]


SCALES = (0.0, 1.0, 1.5, 30.0, 1e6) if everything() else (0.0, 1.5, 1e6)


def rounds(n: int, f: int) -> Iterator[Tensor]:
    """Honest rows from noise, from two groups and on a line; f that lie about them in every way."""
    yield two_camps(n, f)
    for d in (1, 4):
        for spread in (torch.ones(n), torch.logspace(-1, 1, n)):
            yield torch.randn(n, d).double() * spread[:, None] + torch.randn(d)
        yield torch.randn(n, d).double() + 3 * (torch.arange(n) % 2)[:, None]
        for scale in SCALES:
            yield from attacked(torch.randn(n, d).double() + torch.randn(d), f, scale)


def attacked(rows: Tensor, f: int, scale: float) -> Iterator[Tensor]:
    """The last f rows together at some distance from the honest mean, apart, and on one of the honest."""
    honest, rows = rows[: len(rows) - f], rows.clone()
    mean, std = honest.mean(0), honest.std(0)
    apart = mean + scale * torch.randn(f, rows.shape[1])
    for vector in (mean - scale * std, -scale * mean, honest[0], apart):
        rows[len(honest) :] = vector
        yield rows.clone()


def searched(aggregator: Aggregator, n: int, f: int) -> float:
    """The worst that a random walk uphill finds."""
    rows = torch.randn(n, 2).double()
    worst = ratio(aggregator, rows, f)
    for step in range(examples(60, few=20)):
        tried = rows + 0.5 * torch.randn(n, 2) * (torch.rand(n, 1) < 0.3) * 0.95**step
        if (found := ratio(aggregator, tried, f)) > worst:
            rows, worst = tried, found
    return worst


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", EVERY)
def test_no_round_exceeds_the_coefficient(name: str, n: int, f: int) -> None:
    aggregator = aggregator_from(EVERY[name], "aggregator", f=f)
    kappa = aggregator.kappa(n, f)
    assert kappa is not None
    worst = max(ratio(aggregator, rows, f) for rows in rounds(n, f))
    assert f / (n - 2 * f) * (1 - 1e-9) <= worst <= kappa


@pytest.mark.parametrize("name", VARIANTS)
def test_no_search_exceeds_the_coefficient(name: str) -> None:
    aggregator = aggregator_from(VARIANTS[name], "aggregator", f=2)
    kappa = aggregator.kappa(9)
    assert kappa is not None
    assert searched(aggregator, 9, 2) <= kappa


@pytest.mark.parametrize("n", [7, 9])
def test_the_mean_exceeds_every_coefficient(n: int) -> None:
    largest = max(aggregator_from(name, "a", f=2).kappa(n) or 0 for name in CLAIM)
    assert max(ratio(Aggregator(Mean()), rows, 2) for rows in rounds(n, 2)) > 1000 * largest
    assert Aggregator(Mean()).kappa(n, 2) is None


def test_krum_of_unsquared_distances_claims_nothing() -> None:
    assert aggregator_from({"krum": {"convention": "garfield"}}, "a", f=1).kappa(9) is None
    assert aggregator_from("rfa", "a", f=1).kappa(9) is None


class TestCoefficients:
    def test_by_hand(self) -> None:
        """n = 15, f = 3: f / (n - 2 f) = 1/3."""
        wanted = {
            "caf": (1 + (8 / 3) ** 0.5) ** 2,
            "geometric_median": 64 / 9,
            "krum": 9.0,
            "median": 64 / 9,
            "multi_krum": 9.0,
            "smea": 16 / 9,
            "trimmed_mean": 8 / 3,
        }
        found = {name: aggregator_from(name, "a", f=3).kappa(15) for name in CLAIM}
        assert found == pytest.approx(wanted)
        assert Aggregator(Krum(f=3, convention="byzfl")).kappa(15) == pytest.approx(8)

    def test_mixings_by_hand(self) -> None:
        """NNM makes it 2 (kappa + 1), ARC adds 2/3: from the rule outwards."""
        rule, arc, nnm = TrimmedMean(f=3), ARC(f=3), NNM(f=3)
        assert Aggregator(rule, (nnm,)).kappa(15) == pytest.approx(22 / 3)
        assert Aggregator(rule, (arc, nnm)).kappa(15) == pytest.approx(22 / 3 + 2 / 3)
        assert Aggregator(rule, (nnm, arc)).kappa(15) == pytest.approx(2 * (8 / 3 + 2 / 3 + 1))

    @pytest.mark.parametrize("name", CLAIM)
    def test_no_claim_is_below_what_is_possible(self, name: str) -> None:
        for n, f in [(9, 1), (15, 3), (15, 6), (50, 20)]:
            spec = {"smea": {"budget": 10**18}} if name == "smea" else name
            kappa = aggregator_from(spec, "a", f=f).kappa(n)
            assert kappa >= f / (n - 2 * f)

    def test_where_nothing_is_known(self) -> None:
        assert Aggregator(Flag()).kappa(15, 3) is None
        assert Aggregator(Flag(), (NNM(f=3),)).kappa(15, 3) is None
        assert Aggregator(CenteredClipping()).kappa(15, 3) is None
        assert Aggregator(Median(), (Bucketing(),)).kappa(15, 3) is None

    def test_where_the_condition_fails(self) -> None:
        assert Aggregator(Median()).kappa(6, 3) is None
        assert Aggregator(Krum(f=3)).kappa(8) is None
        assert Aggregator(TrimmedMean(f=2)).kappa(15, 3) is None

    def test_of_the_f_that_was_told(self) -> None:
        assert Aggregator(Median(), f=3).kappa(15) == Aggregator(Median()).kappa(15, 3)
        assert Aggregator(TrimmedMean(f=3)).kappa(15, 2) == Aggregator(TrimmedMean(f=3)).kappa(15)

    def test_a_coefficient_for_more_holds_for_fewer(self) -> None:
        """Why a rule that was told 3 keeps its coefficient where one row lies."""
        aggregator = Aggregator(TrimmedMean(f=3))
        kappa = aggregator.kappa(9)
        assert kappa is not None
        assert max(ratio(aggregator, rows, 1) for rows in rounds(9, 1)) <= kappa

    def test_parts_that_were_told_more(self) -> None:
        """The coefficient is that of the object, not of the f that the aggregator was told."""
        assert aggregator_from({"smea": {"f": 3}}, "a", f=1).kappa(7) == pytest.approx(48)
        assert Aggregator(TrimmedMean(f=3), f=0).kappa(15) == pytest.approx(8 / 3)
        assert Aggregator(TrimmedMean(f=2), (NNM(f=3),), f=1).kappa(15) == pytest.approx(
            (3 + math.sqrt(8)) * (1 + 12 / 11 * 13 / 11)
        )
        assert Aggregator(TrimmedMean(f=1), (ARC(f=3),), f=1).kappa(15) is None
        assert Aggregator(TrimmedMean(f=1), (NNM(f=3),)).kappa(15) is None

    @pytest.mark.parametrize("f", [0, 1])
    @pytest.mark.parametrize("name", MISMATCHED)
    def test_no_search_exceeds_it_where_parts_were_told_more(self, name: str, f: int) -> None:
        aggregator = aggregator_from(MISMATCHED[name], "a", f=f)
        kappa = aggregator.kappa(9)
        assert kappa is not None
        assert searched(aggregator, 9, f) <= kappa
        assert max(ratio(aggregator, rows, f) for rows in rounds(9, 3)) <= kappa

    def test_the_coefficient_of_the_smaller_f_is_exceeded(self) -> None:
        """Why a rule that was told 3 cannot have the coefficient for the 1 that the aggregator was told."""
        aggregator = aggregator_from({"smea": {"f": 3}}, "a", f=1)
        small = aggregator_from("smea", "a", f=1).kappa(9)
        assert small is not None
        assert max(ratio(aggregator, rows, 1) for rows in rounds(9, 3)) > small

    def test_who_has_one(self) -> None:
        """Rules that are added with a coefficient are found, and so tested, here."""
        assert all(isinstance(aggregator_from(name, "a", f=1).rule, Resilient) for name in CLAIM)
        conserving = [name for name in MIXINGS if hasattr(MIXINGS.entry(name)[0], "carried")]
        assert conserving == ["arc", "nnm"]
        assert isinstance(NNM(f=1), Conserving)


class TestEffective:
    """(sum c)^2 / sum c^2."""

    def test_of_equal_weights_is_their_number(self) -> None:
        assert Aggregator(Mean())(torch.randn(7, 3)).effective == pytest.approx(7)
        assert Aggregator(Krum(f=1, select=3))(torch.randn(7, 3)).effective == pytest.approx(3)

    def test_by_hand(self) -> None:
        """Weights 1/3 1/3 1/45, and the reference has the rest."""
        found = Aggregator(CenteredClipping())(torch.tensor([[1.0], [2.0], [30.0]]))
        assert found.effective == pytest.approx((31 / 45) ** 2 / (2 / 9 + 1 / 45**2))

    def test_of_negative_weights(self) -> None:
        assert Aggregate(torch.zeros(1), torch.tensor([2.0, -1.0]), ()).effective == pytest.approx(1 / 5)

    def test_of_no_weights_is_none_and_of_zeros_is_zero(self) -> None:
        assert Aggregator(Median())(torch.randn(7, 3)).effective is None
        rows = torch.tensor([[-1.0, 0.0], [0.0, 2.0]])
        assert aggregator_from("fltrust", "a", f=0)(rows, torch.tensor([1.0, -1.0])).effective == 0

    def test_of_weights_of_any_size(self) -> None:
        rows = torch.tensor([[1e150, 0.0], [-1e-150, 1e-150]], dtype=torch.float64)
        assert aggregator_from("upgrad", "a", f=0)(rows).effective == pytest.approx(1)


class TestSpread:
    """Mean squared distance of the rows that took part to the aggregate."""

    @pytest.mark.parametrize("rule", [Krum(f=2), GeometricMedian(), CenteredClipping()])
    @pytest.mark.parametrize("mix", [(), (NNM(f=2),), (Bucketing(),)])
    def test_in_dimensions(self, rule: Krum | GeometricMedian, mix: tuple[NNM | Bucketing, ...]) -> None:
        rows, reference = kit.plain(15, 40).double(), torch.randn(40).double()
        rows[4] = torch.nan
        found = Aggregator(rule, mix, f=2)(rows, reference)
        kept = rows[[i for i in range(15) if i != 4]]
        assert found.spread == pytest.approx(float((kept - found.vector).square().sum(dim=1).mean()))

    def test_only_where_distances_were_measured(self) -> None:
        """The mean and the median read the rows once."""
        rows = torch.randn(7, 3)
        assert Aggregator(Mean())(rows).spread is None
        assert Aggregator(Median())(rows).spread is None
