"""Rules in a program that has set another default type or device of torch."""

from contextlib import contextmanager

import pytest
import torch

from varangian.aggregators import Aggregator
from varangian.aggregators.spec import aggregator_from

RULES = (
    *("mean", "median", "trimmed_mean", "meamed", "krum", "multi_krum", "geometric_median", "flag", "caf"),
    *("centered_clipping", "unit_mean", "bulyan", "nnm+trimmed_mean", "bucketing+median", "arc+caf"),
)
WEIGHTS = (1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@contextmanager
def default(kind):
    """A default type or a default device, as `torch.set_default_device` sets it."""
    if kind == "meta":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rng():
    return torch.Generator("cpu").manual_seed(0)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, "meta"], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_the_same_bits_whatever_the_defaults_of_the_program_are(kind, name):
    rows = torch.randn(9, 5000, generator=rng())
    aggregator = aggregator_from(name, "aggregator", f=1)
    every = [None] if aggregator.weightless else [None, WEIGHTS]
    plain = [aggregator(rows, rng=rng(), weights=weights).vector for weights in every]
    with default(kind):
        found = [aggregator(rows, rng=rng(), weights=weights).vector for weights in every]
    assert [vector.dtype for vector in found] == [torch.float32] * len(found)
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_numpy_rows_stay_what_they_are(kind):
    rows = torch.randn(9, 50, generator=rng()).numpy()
    aggregator: Aggregator = aggregator_from("nnm+median", "aggregator", f=1)
    plain = aggregator(rows).vector
    with default(kind):
        assert torch.equal(aggregator(rows).vector, plain)
