"""Rules and mixings of the user in an aggregator: right ones compute, wrong ones are one sentence."""

import pytest
import torch
from tests.own_parts import Doubled, Failing, TrimmedSum, Weighted

from varangian.aggregators import AggregationError, Aggregator, Median, TrimmedMean, aggregator_from
from varangian.aggregators.errors import PartError
from varangian.aggregators.streaming.stream import Stream, streams

ROWS = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
FUNCTION = "tests.own_parts:trimmed"


def built(spec):
    return aggregator_from(spec, "", f=1)


@pytest.mark.parametrize("mix", ["", "nnm+"])
def test_a_function_of_the_rows_is_the_rule_that_it_computes(mix):
    assert torch.allclose(built(mix + FUNCTION)(ROWS).vector, built(f"{mix}trimmed_mean")(ROWS).vector)


def test_a_row_that_is_not_finite_is_dropped_before_a_function_sees_it():
    rows = ROWS.clone()
    rows[2, 1] = torch.nan
    found = built(FUNCTION)(rows)
    assert found.dropped == (2,)
    assert torch.allclose(found.vector, TrimmedMean(f=0).columnwise(rows[[0, 1, 3, 4, 5, 6]]))


def test_classes_of_the_user_compute():
    assert torch.allclose(Aggregator(TrimmedSum(k=3))(ROWS).vector, ROWS.median(dim=0).values)
    weighted = Aggregator(Weighted(f=1, scale=2.0), mix=(Doubled(),))(ROWS)
    assert torch.allclose(weighted.vector, 4 * ROWS.mean(dim=0))
    assert weighted.weights.tolist() == pytest.approx([4 / 7] * 7)
    assert weighted.details["norm"].shape == (7,)
    assert torch.allclose(
        Aggregator(Median(), mix=(Doubled(),))(ROWS).vector, 2 * ROWS.median(dim=0).values
    )


def test_the_condition_of_a_class_of_the_user_is_asked():
    assert Aggregator(TrimmedSum(k=1)).requires(7, 2) == (
        "TrimmedSum(k=1): it needs n > 2 k >= 2 f, and k is 1"
    )
    assert "`requires` failed: ZeroDivisionError" in Aggregator(Failing("requires")).requires(7, 1)
    assert "should return None or a sentence, and returned True" in Aggregator(Failing("true")).requires(7)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "raise",
            r"own_parts:Failing failed: ZeroDivisionError: division by zero \(tests.own_parts.py, line",
        ),
        ("wide", "`columnwise` of tests.own_parts:Failing should return one number for each of 5 columns"),
    ],
)
def test_a_class_of_the_user_that_fails_is_named(what, said):
    with pytest.raises(PartError, match=said):
        Aggregator(Failing(what))(ROWS)


def test_a_function_that_fails_or_returns_another_shape_is_named():
    short = built("tests.own_parts:short_rule")
    with pytest.raises(PartError, match=r"`aggregate` of tests.own_parts:short_rule should .* Found shape"):
        short(ROWS)


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        (torch.ones(3), r"should return a tensor of shape \[7\]. Found shape \[3\]"),
        ("none", "should return a tensor. Found str"),
        ([torch.nan] * 7, "should return finite numbers"),
    ],
)
def test_weights_that_are_none_are_refused(coefficients, said, monkeypatch):
    monkeypatch.setattr(Weighted, "__call__", lambda self, gram: coefficients)
    with pytest.raises(PartError, match=said):
        Aggregator(Weighted(f=1))(ROWS)
    assert not streams(Aggregator(Weighted(f=1)), 7)


def test_columns_that_fail_in_a_stream_are_told_at_its_end():
    stream = Stream(Aggregator(Failing()), 7, 5)
    stream.advance(list(ROWS), 0)
    with pytest.raises(AggregationError, match="division by zero"):
        stream.finish(7, 0)
    assert not streams(built(FUNCTION), 7)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (f"{FUNCTION}+nnm", f"The rule stands last: write nnm+{FUNCTION}."),
        (["nnm", FUNCTION], f"Between names stands +: write nnm+{FUNCTION}."),
        ("tests.own_parts:Doubled", "is a mixing, a step before a rule: write tests.own_parts:Doubled+"),
    ],
)
def test_names_in_the_wrong_order_are_put_right(spec, hint):
    with pytest.raises(ValueError, match="should be a rule, or mixings and then a rule") as found:
        built(spec)
    assert hint in str(found.value)
