"""The aggregator around its rule: conditions, faults, the reference, the record."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from tests.aggregators.kit import specs

from varangian.aggregators import (
    ARC,
    NNM,
    SMEA,
    AggregationError,
    Aggregator,
    Bucketing,
    CenteredClipping,
    Clipping,
    Flag,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    RowsError,
    SpectralFilter,
    Synthetic,
    TrimmedMean,
    aggregator_from,
    pipeline,
)
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import GramAccumulator
from varangian.aggregators.mixings.scaled import Scaled
from varangian.aggregators.rows import Rows


class TestRequires:
    def test_sentence_of_a_rule(self) -> None:
        assert Aggregator(Krum(f=2)).requires(6) == (
            "Krum(f=2, select=1, convention='paper'): it needs n >= 2 f + 3, 7 for f = 2, and n is 6"
        )

    def test_mixing_changes_how_many_points_there_are(self) -> None:
        """Twelve rows are enough for Krum with f = 2, six groups of them are not."""
        assert Aggregator(Krum(f=2)).requires(12) is None
        assert Aggregator(Krum(f=2), (Bucketing(s=2),)).requires(12) == (
            "Krum(f=2, select=1, convention='paper'): it needs n >= 2 f + 3, 7 for f = 2, and n is 6 "
            "(after Bucketing(s=2): 6 points)"
        )
        assert Aggregator(Krum(f=2), (Bucketing(s=2),)).requires(13) is None

    def test_copies_of_a_byzantine_row_count(self) -> None:
        """Seven copies: 3 + 7 of 22 points are no majority, 4 + 7 are half of them."""
        assert Aggregator(Median(), (Synthetic(),), f=3).requires(15) is None
        assert Aggregator(Median(), (Synthetic(),), f=0).requires(1) is None
        assert Aggregator(Median(), (Synthetic(),), f=4).requires(15) == (
            "Synthetic(count=None): with 7 copies of one of them the f = 4 Byzantine rows may be 11 of 22 "
            "points: no majority is left"
        )

    def test_sentence_of_a_mixing(self) -> None:
        reason = Aggregator(Mean(), (Bucketing(s=5),), f=2).requires(15)
        assert reason == (
            "Bucketing(s=5): f = 2 Byzantine rows may spoil as many of its 3 groups: no majority is left"
        )
        assert "NNM(f=3): it needs n >= 2 f + 1" in str(Aggregator(Mean(), (NNM(f=3),)).requires(6))

    def test_part_that_was_told_of_too_few(self) -> None:
        assert Aggregator(TrimmedMean(f=1), f=2).requires(9) == (
            "TrimmedMean(f=1): it was told f = 1, but 2 of the workers may be Byzantine"
        )

    def test_f_may_be_a_number_of_numpy(self) -> None:
        rule = Krum(f=np.int64(2))  # type: ignore[arg-type]
        assert Aggregator(rule).tolerance == 2
        assert Aggregator(rule, f=2).requires(7) is None

    def test_declared_f_is_the_largest_that_a_part_was_told(self) -> None:
        assert Aggregator(TrimmedMean(f=1), (NNM(f=2),)).tolerance == 2
        assert Aggregator(TrimmedMean(f=1), f=3).tolerance == 3
        assert Aggregator(Mean()).tolerance is None

    def test_median_needs_a_majority_of_the_declared(self) -> None:
        assert Aggregator(Median(), f=3).requires(7) is None
        assert "it needs n >= 2 f + 1, 7 for f = 3, and n is 6" in str(
            Aggregator(Median(), f=3).requires(6)
        )

    def test_mean_needs_nothing(self) -> None:
        assert Aggregator(Mean(), f=3).requires(3) is None
        assert not Aggregator(Mean()).robust
        assert Aggregator(Median()).robust


class TestPlaces:
    """What names a row by its place cannot stand where another point may be in it."""

    def test_pivot_behind_bucketing_is_refused(self) -> None:
        trusting = MoNNA(f=1, pivot=0)
        reason = Aggregator(trusting, (Bucketing(),)).requires(15)
        assert reason == (
            "MoNNA(f=1, pivot=0): it names a row by its place, and behind Bucketing(s=2) another point may "
            "stand there"
        )
        with pytest.raises(AggregationError, match="names a row by its place"):
            Aggregator(trusting, (NNM(f=1), Bucketing()))(kit.plain(15, 4))
        assert Aggregator(MoNNA(f=1), (Bucketing(),)).requires(15) is None
        assert Aggregator(trusting, (ARC(f=1), NNM(f=1), Clipping(radius=1.0))).requires(15) is None

    def test_factors_behind_bucketing_are_refused(self) -> None:
        scaled = Scaled((0.5,) * 8)
        assert "names a row by its place" in str(Aggregator(Mean(), (Bucketing(), scaled)).requires(15))
        assert Aggregator(Mean(), (scaled, Bucketing())).requires(8) is None


class TestFaults:
    def test_rows_that_are_gone_spend_f(self) -> None:
        """Seven workers, two of whom have proved faulty: Krum runs on five rows with f = 0."""
        rows = kit.plain(5, 20)
        found = Aggregator(Krum(f=2, select="max"))(rows, faults=2)
        assert (found.weights > 0).sum() == 3
        with pytest.raises(AggregationError, match="needs n >= 2 f"):
            Aggregator(Krum(f=2))(rows)

    def test_dropped_and_gone_add_up(self) -> None:
        rows = kit.plain(6, 20)
        rows[2, 0] = torch.nan
        assert Aggregator(Krum(f=2))(rows, faults=1).dropped == (2,)
        with pytest.raises(AggregationError) as caught:
            Aggregator(Krum(f=2))(rows, faults=2)
        assert str(caught.value) == (
            "3 of 8 rows are provably invalid, but only f = 2 were declared Byzantine."
        )

    def test_no_row_is_left(self) -> None:
        with pytest.raises(AggregationError, match=r"Mean\(\): there are no rows"):
            Aggregator(Mean())(torch.full((3, 4), torch.nan))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("per_block", [False, True])
    def test_invalid_rows_spend_f_before_the_condition_is_asked(
        self, dtype: torch.dtype, per_block: bool
    ) -> None:
        """Bucketing and Krum do not take 15 rows with f = 3, but they take 13 with f = 1."""
        rows = kit.plain(15, 20).to(dtype)
        rows[4, 3], rows[9, 17] = torch.nan, torch.inf
        aggregator = Aggregator(Krum(f=3), (Bucketing(),), per_block=per_block)
        left = torch.tensor([i for i in range(15) if i not in (4, 9)])
        blocks = [5, 7, 8]
        found = aggregator(rows, rng=kit.rng(), blocks=blocks)
        single = Aggregator(Krum(f=1), (Bucketing(),), per_block=per_block)
        wanted = single(rows[left], rng=kit.rng(), blocks=blocks)
        assert found.dropped == (4, 9)
        assert torch.equal(found.vector, wanted.vector)
        with pytest.raises(AggregationError, match="needs n >= 2 f"):
            aggregator(kit.plain(15, 20).to(dtype), blocks=blocks)

    def test_weight_of_invalid_rows_is_spent_before_the_condition_is_asked(self) -> None:
        """Two heavy rows have more than half of the weight, and of the rows that are left one has less."""
        rows, weights = kit.plain(7, 20).float(), [4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        aggregator = Aggregator(Median(), f=2)
        assert aggregator.requires(7, weights=weights) is not None
        rows[0] = torch.nan
        found = aggregator(rows, weights=weights)
        assert found.dropped == (0,)
        assert torch.equal(found.vector, Aggregator(Median(), f=1)(rows[1:], weights=weights[1:]).vector)

    def test_f_is_spent_in_every_part(self) -> None:
        """With one fault the neighbourhoods are of n - 1 - (f - 1) rows: as large as before."""
        rows = kit.plain(9, 20)
        rows[0] = torch.inf
        found = Aggregator(TrimmedMean(f=2), (NNM(f=2),))(rows).vector
        wanted = Aggregator(TrimmedMean(f=1), (NNM(f=1),))(rows[1:]).vector
        assert torch.equal(found, wanted)


class TestReference:
    @pytest.mark.parametrize("reference", [torch.zeros(3), torch.zeros(1, 4), torch.tensor(0.0)])
    def test_of_another_shape(self, reference: torch.Tensor) -> None:
        with pytest.raises(RowsError, match=r"`reference` should be \(4,\)"):
            Aggregator(Mean())(torch.ones(3, 4), reference)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
    def test_not_finite_in_the_type_of_the_rows(self, value: float) -> None:
        reference = torch.full((4,), value, dtype=torch.float64)
        with pytest.raises(RowsError, match=r"`reference` should be finite in torch.float32"):
            Aggregator(Mean())(torch.ones(3, 4), reference)

    def test_of_another_type(self) -> None:
        rows, reference = kit.plain(5, 4), torch.ones(4, dtype=torch.float64, requires_grad=True)
        found = Aggregator(CenteredClipping())(rows, reference)
        assert torch.equal(found.vector, Aggregator(CenteredClipping())(rows, torch.ones(4)).vector)
        assert not found.vector.requires_grad

    def test_does_not_change_what_does_not_use_it(self) -> None:
        rows = kit.plain(9, 20).double()
        for rule in (Mean(), Krum(f=2), TrimmedMean(f=2), Flag()):
            about = Aggregator(rule)(rows, torch.randn(20).double())
            assert torch.allclose(about.vector, Aggregator(rule)(rows).vector)
            assert about.reference_weight == 0


class TestRecord:
    def test_weights_are_of_rows_even_after_mixings(self) -> None:
        rows = kit.plain(9, 20).double()
        found = Aggregator(Krum(f=2), (NNM(f=2), Bucketing(s=1)))(rows, None, kit.rng())
        assert (found.weights > 0).sum() == 7
        assert torch.allclose(found.weights @ rows, found.vector)

    def test_columnwise_rules_have_no_weights(self) -> None:
        assert Aggregator(Median())(kit.plain(5, 3)).weights is None

    def test_details_are_of_rows_or_not_given(self) -> None:
        """A point of several rows says nothing of any one of them; one of a single row goes back to it."""
        rows = kit.plain(9, 20).double()
        rows[2] = torch.nan
        alone = Aggregator(Flag(), f=1)(rows).details["explained_variance"]
        shuffled = Aggregator(Flag(), (Bucketing(s=1),), f=1)(rows, None, kit.rng())
        assert torch.allclose(shuffled.details["explained_variance"], alone, equal_nan=True)
        cut = Aggregator(Flag(), (ARC(f=2),))(rows).details["explained_variance"]
        assert torch.allclose(cut, alone, equal_nan=True)
        assert Aggregator(Flag(), (NNM(f=2),))(rows).details == {}
        grouped = Aggregator(Flag(), (Bucketing(s=3),), f=1)(rows[:8], None, kit.rng()).details
        assert grouped["explained_variance"].isfinite().sum() == 1


class TestRandomness:
    def test_without_any_given_every_call_draws_anew(self) -> None:
        """One permutation for ever would let an attacker choose its group."""
        aggregator, rows = Aggregator(Krum(f=1), (Bucketing(),)), kit.plain(13, 20)
        groups = {str(aggregator(rows).weights) for _ in range(20)}
        assert len(groups) > 10

    def test_the_seed_of_torch_or_the_one_given_make_it_come_again(self) -> None:
        aggregator, rows = Aggregator(Median(), (Bucketing(),)), kit.plain(9, 20)
        found = []
        for _ in range(2):
            torch.manual_seed(5)
            found += [aggregator(rows).vector, aggregator(rows, rng=kit.rng()).vector]
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize(
    ("part", "field"),
    [
        (Bucketing, "s"),
        (CenteredClipping, "iterations"),
        (Flag, "components"),
        (GeometricMedian, "iterations"),
        (partial(Krum, f=1), "select"),
        (partial(SMEA, f=1), "budget"),
        (partial(SpectralFilter, f=1), "iterations"),
    ],
)
def test_a_count_is_a_positive_integer(part: Callable[..., object], field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{field}` should be a positive integer. Found {value}"):
        part(**{field: value})


@pytest.mark.parametrize("f", [-1, 1.5, True])
def test_f_is_a_count(f: int) -> None:
    class Custom(Median):
        pass

    object.__setattr__(custom := Custom(), "f", f)
    rows = kit.plain(9, 4)
    for build in (
        lambda: Aggregator(Median(), f=f),
        lambda: Aggregator(custom),
        lambda: Aggregator(Median()).requires(9, f),
        lambda: Aggregator(Median()).kappa(9, f),
        lambda: aggregator_from("median", "aggregator", f=f),
    ):
        with pytest.raises(ValueError, match=f"`f` should be a non-negative integer. Found {f}"):
            build()
    with pytest.raises(ValueError, match="`faults` should be"):
        Aggregator(Median())(rows, faults=-1)


def test_mixings_may_be_a_list() -> None:
    assert Aggregator(Median(), [NNM(f=1)]) == Aggregator(Median(), (NNM(f=1),))  # type: ignore[arg-type]


def test_products_measured_elsewhere_are_used() -> None:
    rows = torch.randn(7, 300, generator=torch.Generator().manual_seed(3))
    accumulator = GramAccumulator(7, 300)
    accumulator.take(list(rows))
    asked: list[bool] = []

    def measured() -> torch.Tensor:
        asked.append(True)
        return accumulator.products()

    aggregator = Aggregator(Krum(f=2))
    given = aggregator(rows, measured=measured)
    assert asked == [True]
    assert torch.equal(given.vector, aggregator(rows).vector)


class TestScaled:
    """Rows that count for less, each by its own factor."""

    ROWS = torch.tensor([[4.0, 0.0], [float("nan"), 1.0], [2.0, 6.0], [8.0, 2.0]])

    def test_rows_that_are_dropped_take_their_factors_along(self) -> None:
        scaled = Aggregator(Median(), (Scaled((0.5, 1.0, 1.0, 0.25)),), f=1)(self.ROWS)
        assert scaled.dropped == (1,)
        assert scaled.vector.tolist() == [2.0, 0.5]

    def test_what_follows_sees_scaled_rows(self) -> None:
        factors = (0.5, 1.0, 1.0, 0.25)
        mixed = Aggregator(Mean(), (Scaled(factors), NNM(f=1)), f=1)(self.ROWS)
        rows = self.ROWS * torch.tensor(factors)[:, None]
        assert torch.allclose(mixed.vector, Aggregator(Mean(), (NNM(f=1),), f=1)(rows).vector)


@pytest.mark.parametrize("name", ["median", "mean", "krum", "flag", "trimmed_mean", "nnm, flag"])
def test_narrow_rows_make_an_update_as_wide_as_the_memory_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WIDENED", 100)
    aggregator, into = aggregator_from(specs()[name], "aggregator", f=3), torch.zeros(1003)
    rows = torch.randn(15, 1003, generator=torch.Generator().manual_seed(5)).bfloat16()
    found = aggregator(rows, rng=torch.Generator().manual_seed(3), into=into)
    wanted = aggregator(rows.float(), rng=torch.Generator().manual_seed(3)).vector
    assert found.vector.dtype == torch.float32
    assert (found.vector - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", ["median", "mean", "krum"])
def test_memory_for_the_update_is_used_where_it_fits(name: str) -> None:
    aggregator, into = aggregator_from(specs()[name], "aggregator", f=3), torch.zeros(1003)
    rows = torch.randn(15, 1003, generator=torch.Generator().manual_seed(5))
    found = aggregator(rows, into=into)
    assert found.vector.data_ptr() == into.data_ptr()
    assert torch.equal(found.vector, aggregator(rows).vector)
    assert aggregator(rows.double(), into=into).vector.dtype == torch.float64
    rows[3, 7] = torch.nan
    assert aggregator(rows, into=into).dropped == (3,)


@pytest.mark.parametrize(
    "name",
    ["nnm+median", "nnm+trimmed_mean", "bucketing+nnm+median", "median", "nnm+meamed", "bulyan"],
)
def test_repeated_calls_have_the_bits_of_calls(name: str) -> None:
    aggregator = aggregator_from(name, "aggregator", f=2)
    moved = torch.zeros(30)
    fixed = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    rows = Rows((*fixed.unbind(), moved, moved))
    reference = fixed.mean(dim=0)

    call = aggregator.repeated(rows, len(fixed), reference, lambda: Gram.of(rows, reference).basis.products)
    found = list[object]()
    for size in (0.5, 3.0, 30.0, 60.0, float("inf"), 1e38, 30.0, 0.1):
        moved.fill_(size)
        answer = call(torch.Generator().manual_seed(1))
        expected = aggregator(rows, reference, torch.Generator().manual_seed(1))
        assert torch.equal(answer.vector, expected.vector)
        assert answer.dropped == expected.dropped
        found.append(answer)
    assert (found[2] is found[3]) == name.endswith(("nnm+median", "nnm+trimmed_mean"))


@pytest.mark.parametrize(
    "parts", [{"rule": "krum"}, {"rule": Mean(), "mix": ("nnm",)}, {"rule": Mean(), "mix": "nnm"}]
)
def test_names_in_the_place_of_parts_are_told_what_makes_them_an_aggregator(parts):
    with pytest.raises(AggregationError, match="aggregator_from"):
        Aggregator(**parts)
