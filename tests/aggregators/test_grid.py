"""Every rule after every mixing on every family of rows: float32 kernels against the float64 definition."""

from dataclasses import replace

import pytest
import torch
from tests.aggregators import kit
from tests.aggregators.test_conformance import assert_consistent

from varangian.aggregators import MIXINGS, RULES

CELLS = [(rule, mixing) for mixing in (None, *MIXINGS) for rule in RULES]
D = 300


def difference(rule: str, mixing: str | None, family: str) -> float:
    """Between both updates, over the longest row or update; 0 where rounding may choose a row."""
    aggregator, rows = kit.combined(rule, mixing), kit.FAMILIES[family](kit.N, D).to(kit.DEVICE)
    reference = torch.linspace(0.01, 0.02, D).to(kit.DEVICE) if rule in kit.REFERRED else None
    found = aggregator(rows, reference, kit.rng())
    assert_consistent(found, rows, reference)
    if (rule, mixing) in kit.ROUNDING_CHOOSES:
        return 0.0
    exact = replace(aggregator, backend="reference")
    wanted = exact(rows.double(), None if reference is None else reference.double(), kit.rng())
    longest = torch.cat([rows.double(), wanted.vector[None]]).norm(dim=1).max()
    return float((found.vector - wanted.vector).norm() / longest)


@pytest.mark.parametrize(("rule", "mixing"), CELLS)
@pytest.mark.parametrize("family", kit.FAMILIES)
def test_agrees_with_the_definition(rule: str, mixing: str | None, family: str) -> None:
    assert difference(rule, mixing, family) <= 1e-5
