"""Rows of unequal weight: the same as equal copies, formulas of papers, budgets, and who refuses."""

from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.aggregators import kit
from tests.extent import examples
from torch import Tensor

from varangian.aggregators import AggregationError, Aggregator, Rows, RowsError, aggregator_from
from varangian.aggregators.base import MIXINGS, RULES, takes_weights
from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.streaming.sharded import decide, measure
from varangian.aggregators.streaming.stream import Stream
from varangian.aggregators.streaming.updated import UpdatedGram

COUNTS = (4, 1, 3, 2, 1, 6, 2, 3, 1, 5, 2)
"""Whole weights, of sum 30."""

SPLIT: dict[str, Any] = {
    "mean": "mean",
    "median": "median",
    "median lower": {"median": {"convention": "lower"}},
    "trimmed_mean": "trimmed_mean",
    "krum byzfl": {"krum": {"convention": "byzfl"}},
    "multi_krum byzfl": {"multi_krum": {"convention": "byzfl"}},
    "geometric_median": "geometric_median",
    "rfa": "rfa",
    "centered_clipping": {"centered_clipping": {"iterations": 3}},
    "centered_clipping by hand": {"centered_clipping": {"tau": 2.0}},
    "caf": "caf",
    "flag": {"flag": {"components": 4}},
    "flag reweighted": {"flag": {"components": 4, "iterations": 3}},
    "flag released": {"flag": {"components": 4, "final": "released"}},
    "unit_mean": "unit_mean",
    "nnm": "nnm+trimmed_mean",
    "arc": "arc+caf",
    "clipping": {"mix": [{"clipping": {"radius": 5.0}}], "rule": "median"},
    "arc, nnm": "arc+nnm+geometric_median",
}
"""Rules for which a row of weight k is k equal rows. Krum of the paper counts rows that it leaves out."""
RELEASED = "flag released"
"""Divides by the number of components and not by that of rows."""

WEIGHABLE = [
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "krum of three",
    "krum torchjd",
    "multi_krum garfield",
    "multi_krum byzfl",
    "geometric_median",
    "rfa",
    "centered_clipping",
    "centered_clipping in three steps",
    "caf",
    "flag",
    "flag released",
    "flag one component",
    "unit_mean",
    "nnm, krum",
    "nnm, median",
    "arc, median",
    "arc, flag",
    "clipping, median",
    "clipping about the reference, median",
]
"""Names of `kit.specs()`."""


def heaviest(counts: tuple[int, ...], f: int) -> int:
    return sum(sorted(counts)[len(counts) - f :])


def outlying(d: int = kit.D) -> Tensor:
    """Rows of which two are far away."""
    rows = kit.rows_of("plain", len(COUNTS), d)
    rows[4] *= -20
    rows[7] += 8
    return rows


def as_equal(n: int) -> Shares:
    """Equal weights that are taken for unequal ones."""
    whole = Shares.of([1.0, *[2.0] * (n - 1)], n)
    assert whole is not None
    return Shares(np.full(n, 1 / n), np.arange(n + 1) / n)


@pytest.mark.parametrize("name", kit.specs())
def test_equal_weights_change_no_bit(name: str) -> None:
    rows = kit.rows_of("lopsided", dtype=torch.float32)
    wanted = kit.built(name)(rows, None, kit.rng())
    aggregator = cast("Any", kit.built(name))
    if not isinstance(aggregator, kit.Referred):
        found = aggregator(rows, None, kit.rng(), weights=[3.0] * kit.N)
        assert torch.equal(found.vector, wanted.vector)


@pytest.mark.parametrize("name", WEIGHABLE)
@pytest.mark.parametrize("family", ["plain", "lopsided", "sparse", "low_rank"])
def test_formulas_with_weights_are_those_without(name: str, family: str) -> None:
    rows = kit.rows_of(family)
    wanted = kit.built(name)(rows, rows[0] / 2)
    found = kit.built(name)(rows, rows[0] / 2, weights=as_equal(kit.N))
    slack = 1e-7 if "geometric" in name else 1e-10  # both stop within 1e-9 of the radius
    kit.assert_near(found.vector, wanted.vector, slack, rows)


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("f", [0, 1, 2])
def test_a_weight_is_a_number_of_copies(name: str, f: int) -> None:
    rows = outlying()
    copies = rows.repeat_interleave(torch.tensor(COUNTS), dim=0)
    split = aggregator_from(SPLIT[name], "aggregator", f=heaviest(COUNTS, f))
    weighted = aggregator_from(SPLIT[name], "aggregator", f=f)
    reference = rows[1] / 3
    wanted, found = split(copies, reference).vector, weighted(rows, reference, weights=COUNTS).vector
    if name == RELEASED:
        wanted = wanted * len(rows) / len(copies)
    slack = 1e-6 if "geometric" in name or "arc, nnm" in name else 1e-9
    kit.assert_near(found, wanted, slack, rows[:1])


@settings(max_examples=examples(60, few=15), deadline=None, derandomize=True)
@given(
    st.sampled_from([name for name in SPLIT if name not in (RELEASED, "geometric_median", "arc, nnm")]),
    st.lists(st.integers(1, 5), min_size=5, max_size=9),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_copies_of_any_number(name: str, counts: list[int], f: int, seed: int) -> None:
    given_counts, spent = tuple(counts), heaviest(tuple(counts), f)
    split = aggregator_from(SPLIT[name], "aggregator", f=spent)
    weighted = aggregator_from(SPLIT[name], "aggregator", f=f)
    n, total = len(counts), sum(counts)
    if weighted.requires(n, weights=counts) or split.requires(total):
        # Krum of copies asks for two rows more, and Flag for as many rows as components.
        assert 2 * spent >= total or "krum" in name or "flag" in name
        return
    torch.manual_seed(seed)
    rows = torch.randn(n, 7, dtype=torch.float64)
    copies = rows.repeat_interleave(torch.tensor(given_counts), dim=0)
    kit.assert_near(weighted(rows, weights=counts).vector, split(copies).vector, 1e-7, rows)


def test_trimmed_mean_cuts_a_part_of_a_value() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=torch.float64)
    rule = aggregator_from("trimmed_mean", "aggregator", f=1)
    # B = 0.4: of the least 0.4 nothing is left of 0 and 1 but 0.1, of the greatest 0.1 of 2.
    found = rule(rows, weights=[0.1, 0.4, 0.3, 0.2]).vector
    assert found.tolist() == pytest.approx([(0.1 * 1 + 0.1 * 2) / 0.2])


@pytest.mark.parametrize(("convention", "wanted"), [("midpoint", 1.5), ("lower", 1.0)])
def test_median_of_two_halves(convention: str, wanted: float) -> None:
    rows = torch.tensor([[5.0], [1.0], [2.0]])
    rule = aggregator_from({"median": {"convention": convention}}, "aggregator", f=0)
    assert rule(rows, weights=[1, 2, 1]).vector.tolist() == [wanted]
    assert rule(rows, weights=[1.1, 2, 1]).vector.tolist() == [2.0]


@pytest.mark.parametrize("spec", ["trimmed_mean", "median", {"median": {"convention": "lower"}}])
@pytest.mark.parametrize("n", [2, 3, 15, 60])
def test_columns_of_any_type_and_number(spec: object, n: int) -> None:
    """Few float32 values go through a network of comparisons, others through a sort."""
    aggregator = aggregator_from(spec, "aggregator", f=n // 5)
    rows, weights = torch.randn(n, 203), 0.5 + torch.rand(n)
    rows[0, :20], rows[1, :20], rows[n // 2, 10:60] = 0.0, -0.0, 1e38
    exact = aggregator(rows.double(), weights=weights).vector
    found = aggregator(rows, weights=weights).vector
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-7)
    half = aggregator(rows.clamp(-9, 9).half(), weights=weights).vector
    assert torch.allclose(
        half.double(), aggregator(rows.clamp(-9, 9).double(), weights=weights).vector, atol=1e-2
    )


def test_what_is_cut_leaves_nothing_behind() -> None:
    """Not even a share of 1e-17 of a value: it may be 1e38."""
    weights = [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    aggregator = aggregator_from("trimmed_mean", "aggregator", f=1)
    for dtype in (torch.float32, torch.float64):
        rows = torch.ones(7, 3, dtype=dtype)
        rows[2] = torch.finfo(dtype).max / 1e3 if dtype == torch.float32 else 1e140
        assert torch.allclose(aggregator(rows, weights=weights).vector, torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("left", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("n", [3, 5, 40])
@pytest.mark.parametrize("rule", ["trimmed_mean", "median"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_of_nearly_half_of_the_weight_is_still_a_minority(
    left: float, n: int, rule: str, dtype: torch.dtype
) -> None:
    aggregator = aggregator_from(rule, "aggregator", f=1)
    weights = [(n - 1) * (1 - left), *[1.0] * (n - 1)]
    rows = torch.arange(n, dtype=dtype)[:, None].repeat(1, 3)
    rows[0] = torch.tensor([-1e30, 1e30, 1.0], dtype=dtype)
    found = aggregator(rows, weights=weights).vector
    assert torch.allclose(found, torch.tensor([1.0, n - 1, 1.0], dtype=dtype), rtol=1e-2)
    weights[0] = (n - 1) * (1 - 1e-8)
    with pytest.raises(AggregationError, match="less than half of the weight"):
        aggregator(rows, weights=weights)


def krum_of_the_paper(rows: Tensor, p: list[float], budget: float) -> list[float]:
    """Scores: the nearest others up to the weight 1 - B - 2 p of the row, squared distances p times."""
    scores = []
    for i, row in enumerate(rows):
        others = sorted((float((row - x).square().sum()), p[j]) for j, x in enumerate(rows) if j != i)
        left, score = 1 - budget - 2 * p[i], 0.0
        for square, weight in others:
            score += min(weight, max(0.0, left)) * square
            left -= weight
        scores.append(score)
    return scores


def test_krum_of_the_paper() -> None:
    rows, p = outlying(), [count / sum(COUNTS) for count in COUNTS]
    scores = krum_of_the_paper(rows, p, heaviest(COUNTS, 1) / sum(COUNTS))
    best = sorted(range(len(rows)), key=lambda i: scores[i])
    one = aggregator_from("krum", "aggregator", f=1)(rows, weights=COUNTS)
    assert one.weights is not None
    assert one.weights.argmax() == best[0]
    three = aggregator_from({"krum": {"select": 3}}, "aggregator", f=1)(rows, weights=COUNTS)
    wanted = torch.tensor(p, dtype=torch.float64)[best[:3]] / sum(p[i] for i in best[:3])
    assert three.weights is not None
    assert torch.allclose(three.weights[best[:3]], wanted)
    left, shares = 1 - heaviest(COUNTS, 1) / sum(COUNTS) - 2 / len(rows), [0.0] * len(rows)
    for i in best:
        shares[i] = min(p[i], max(0.0, left))
        left -= p[i]
    many = aggregator_from("multi_krum", "aggregator", f=1)(rows, weights=COUNTS)
    assert many.weights is not None
    assert many.weights.tolist() == pytest.approx([share / sum(shares) for share in shares])


def test_geometric_median_has_the_least_weighted_sum_of_distances() -> None:
    rows, p = outlying(), torch.tensor(COUNTS, dtype=torch.float64)
    found = aggregator_from("geometric_median", "aggregator", f=1)(rows, weights=COUNTS).vector

    def cost(point: Tensor) -> float:
        return float((rows - point).norm(dim=1) @ p)

    torch.manual_seed(1)
    for _ in range(50):
        assert cost(found) <= cost(found + 1e-3 * torch.randn(kit.D, dtype=torch.float64))


@pytest.mark.parametrize("name", WEIGHABLE)
@pytest.mark.parametrize("f", [1, 2])
def test_coefficients_hold(name: str, f: int) -> None:
    """For every S of all rows but f, with the others where they do most harm of a few places."""
    aggregator, n = kit.built(name, f), 13
    torch.manual_seed(f)
    p = 0.5 + torch.rand(n, dtype=torch.float64)
    kappa = aggregator.kappa(n, f, p)
    if kappa is None:
        assert {name.split()[0], name.split()[-1]} & {
            *("mean", "rfa", "flag", "unit_mean", "centered_clipping", "clipping", "torchjd", "garfield"),
            "component",
            "released",
        } or "clipping" in name
        return
    for trial in range(8):
        rows = torch.randn(n, 3, dtype=torch.float64)
        byzantine = torch.randperm(n)[:f]
        rows[byzantine] = rows[byzantine[0]] * 10.0 ** (trial % 4 - 1)
        update = aggregator(rows, weights=p).vector
        for outside in combinations(range(n), f):
            inside = [i for i in range(n) if i not in outside]
            share = p[inside] / p[inside].sum()
            mean = share @ rows[inside]
            spread = float(share @ (rows[inside] - mean).square().sum(dim=1))
            assert float((update - mean).square().sum()) <= kappa * spread * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in WEIGHABLE if name not in ("mean", "rfa")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [0, 6])
def test_one_huge_row_cannot_move_it_far(name: str, dtype: torch.dtype, row: int) -> None:
    rows = kit.rows_of("plain", dtype=dtype)
    longest = rows.float().norm(dim=1).max()
    rows[row] = 1e30
    weights = [5.3, *[1.0] * 5, 5.3, *[1.7] * 8]
    aggregator = kit.built(name, 1)
    assert aggregator(rows, weights=weights).vector.float().norm() <= 30 * longest


def test_invalid_row_spends_its_own_weight() -> None:
    rows = outlying()
    rows[3] = torch.nan
    left = [i for i in range(len(rows)) if i != 3]
    copies = rows[left].repeat_interleave(torch.tensor(COUNTS)[left], dim=0)
    found = aggregator_from("nnm+trimmed_mean", "aggregator", f=2)(rows, weights=COUNTS)
    assert found.dropped == (3,)
    spent = heaviest(COUNTS, 2) - COUNTS[3]
    wanted = aggregator_from("nnm+trimmed_mean", "aggregator", f=spent)(copies)
    kit.assert_near(found.vector, wanted.vector, 1e-9, rows[:1])
    # The same where the caller has found it, and says what it weighed.
    told = aggregator_from("nnm+trimmed_mean", "aggregator", f=2)(
        rows[left], faults=1, weights=[*(COUNTS[i] for i in left), COUNTS[3]]
    )
    assert torch.equal(told.vector, found.vector)


def test_per_block_is_the_rule_for_each_block() -> None:
    rows = outlying()
    rows[3, 0] = torch.nan
    whole = aggregator_from("arc+caf", "aggregator", f=2)
    aggregator = Aggregator(whole.rule, whole.mix, 2, per_block=True)
    found = aggregator(rows, blocks=(15, 25), weights=COUNTS)
    assert found.dropped == (3,)
    left = [i for i in range(len(rows)) if i != 3]
    told = [*(COUNTS[i] for i in left), COUNTS[3]]
    parts = [whole(rows[left][:, part], faults=1, weights=told) for part in (slice(15), slice(15, 40))]
    assert torch.allclose(found.vector, torch.cat([part.vector for part in parts]))


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "caf", "nnm, median", "multi_krum"])
def test_columns_in_several_places(name: str) -> None:
    rows = outlying().float()
    rows[3, 2] = torch.inf
    aggregator = kit.built(name)
    places = [Rows.of(rows[:, part]) for part in (slice(15), slice(15, 40))]
    total = sum((measure(aggregator, place) for place in places[1:]), measure(aggregator, places[0]))
    decision = decide(aggregator, total, kit.rng(), weights=COUNTS)
    wanted = aggregator(rows, weights=COUNTS)
    found = torch.cat([decision.apply(place) for place in places])
    assert torch.allclose(found, wanted.vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean"])
def test_columns_that_are_forgotten(name: str) -> None:
    rows, aggregator = outlying().float(), kit.built(name)
    stream = Stream(aggregator, len(rows), kit.D, weights=COUNTS)
    assert not stream.holds(len(rows), 0)
    for start in range(0, kit.D, 16):
        stream.advance([row[start : start + 16] for row in rows], start)
    found = stream.finish(len(rows), 0, COUNTS)
    assert torch.allclose(found.vector, aggregator(rows, weights=COUNTS).vector)


def test_inner_products_that_are_kept() -> None:
    rows, aggregator = outlying(), kit.built("caf")
    kept = UpdatedGram(len(rows))
    found = aggregator(rows, measured=lambda: kept.products(Rows.of(rows)), weights=COUNTS)
    kit.assert_near(found.vector, aggregator(rows, weights=COUNTS).vector, 1e-9)


@pytest.mark.parametrize(
    ("spec", "weights", "reason"),
    [
        ("median", [5, 2, 2, 1], "the f = 1 heaviest may have 0.5"),
        ("caf", [5, 2, 2, 1], "less than half of the weight on Byzantine rows"),
        ("krum", [4, 2, 2, 2, 1], "2 B [+] max p < 1"),
        ({"krum": {"select": 3}}, [3, 3, 3, 1, 1, 1, 1, 1, 1], "3 may have 0.6"),
        ({"krum": {"f": 0}}, [3, 2, 2, 1], "told f = 0"),
        ("bulyan", [2, *[1] * 8], "no form for rows of unequal weight"),
        ("bucketing+median", [2, *[1] * 8], "Bucketing.*no form for rows of unequal weight"),
        ({"flag": {"lam": 1.0}}, [2, *[1] * 8], "set `lam` to 0"),
        ({"flag": {"components": 9}}, [2, 1, 1, 1], "9 components in 4 rows"),
    ],
)
def test_conditions(spec: object, weights: list[float], reason: str) -> None:
    aggregator = aggregator_from(spec, "aggregator", f=1)
    with pytest.raises(AggregationError, match=reason):
        aggregator(torch.zeros(len(weights), 3), weights=weights)
    assert aggregator.kappa(len(weights), weights=weights) is None


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, 2], "one for each of 3 rows. Found 2"),
        ([1, 2, 0], "positive and finite. Found 0.0 for row 2"),
        ([1, float("nan"), 1], "Found nan for row 1"),
        ([[1, 2, 3]], r"Found shape \[1, 3\]"),
        (["a", 1, 2], "should be numbers"),
    ],
)
def test_weights_that_are_none(weights: Any, said: str) -> None:
    with pytest.raises(RowsError, match=said):
        aggregator_from("mean", "aggregator", f=0)(torch.zeros(3, 2), weights=weights)


def test_budget() -> None:
    shares = Shares.of([4, 3, 2, 1], 4)
    assert shares is not None
    assert [shares.budget(f) for f in range(6)] == pytest.approx([0, 0.4, 0.7, 0.9, 1, 1])
    # The row of weight 0.3 is gone: of the 0.7 of two rows 0.4 is left, of the 0.7 that are there.
    left = shares.keeping([0, 2, 3])
    assert left.budget(1) == pytest.approx(0.4 / 0.7)
    assert left.budget(0) == pytest.approx(0.1 / 0.7)


def test_the_page_has_the_rules_that_take_no_weights() -> None:
    page = (Path(__file__).parents[2] / "docs/concepts/robustness.md").read_text()
    said = page[: page.index("refuse weights. The coefficient")].rpartition("\n\n")[2]
    refusing = {
        name for known in (RULES, MIXINGS) for name in known if not takes_weights(known.entry(name)[0])
    }
    assert {word.strip("`,") for word in said.split() if word.startswith("`")} == refusing
