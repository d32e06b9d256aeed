"""How much less a vector counts for being old."""

from __future__ import annotations

import math

import pytest
import torch

from varangian.aggregators import AggregationError, Aggregator, Mean
from varangian.aggregators.mixings.scaled import Scaled
from varangian.registry import ConfigError
from varangian.server.participation.staleness import STALENESS, Constant, Hinge, Polynomial


def test_weights_by_age():
    assert [Constant().factor(age) for age in (0, 9)] == [1, 1]
    assert [Polynomial().factor(age) for age in (0, 3)] == [1, 0.5]
    assert [Hinge(a=2, b=4).factor(age) for age in (0, 4, 5, 6)] == [1, 1, 1 / 3, 1 / 5]
    assert [*STALENESS] == ["constant", "hinge", "polynomial"]


@pytest.mark.parametrize("name", [*STALENESS])
def test_nothing_counts_more_for_being_older(name: str):
    factors = [STALENESS.build(name, "weight").factor(age) for age in range(30)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"polynomial": {"a": 0.0}}, "`a` should be positive"),
        ({"hinge": {"a": math.inf}}, "`a` should be positive and finite"),
        ({"hinge": {"b": -1}}, "`b` should be a number of rounds, at least 0. Found -1"),
    ],
)
def test_bad_weights(spec: object, sentence: str):
    with pytest.raises(ConfigError) as error:
        STALENESS.build(spec, "staleness")
    assert sentence in str(error.value)


def test_rows_are_scaled_by_their_factors_before_any_rule():
    rows, r = torch.tensor([[2.0, 4.0], [6.0, 8.0]]), torch.tensor([5.0, -3.0])
    scaled = Aggregator(Mean(), mix=(Scaled((0.5, 1.0)),))(rows, r)
    assert torch.allclose(scaled.vector, torch.tensor([3.5, 5.0]))
    assert Scaled((0.5, 1.0)).outputs(2) == 2
    with pytest.raises(AggregationError, match=r"each of the 2 rows that are left\. Found 1"):
        Aggregator(Mean(), mix=(Scaled((0.5,)),))(rows)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Scaled((1.5,))
