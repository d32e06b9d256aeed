"""Columns in several places: the same update as from whole rows, for every rule, whoever is dropped."""

import itertools

import pytest
import torch
from tests.aggregators.kit import ILL_CONDITIONED, N, built, specs

from varangian.aggregators import AggregationError, Aggregator, Krum, Median, Rows
from varangian.aggregators.base import is_columnwise, is_selecting, uses_reference
from varangian.aggregators.gram import precision_of
from varangian.aggregators.streaming.sharded import Measured, decide, measure, refuses

D = 300


def rows_of(dtype, bad=()):
    rng = torch.Generator().manual_seed(5)
    common = torch.randn(D, generator=rng, dtype=torch.float64)
    rows = (common + torch.randn(N, D, generator=rng, dtype=torch.float64)).to(dtype)
    rows[1] *= -20
    for place, row in enumerate(bad):
        rows[row, 7 + 200 * place] = (torch.nan, torch.inf)[place % 2]
    return rows


def in_places(aggregator, rows, reference, borders):
    """The aggregate as places with these borders find it, and their decision."""
    parts = [slice(a, b) for a, b in itertools.pairwise((0, *borders, D)) if a < b]
    pieces = [
        (Rows(tuple(row[part] for row in rows)), None if reference is None else reference[part])
        for part in parts
    ]
    total = sum((measure(aggregator, *piece) for piece in pieces), start=Measured.nothing(len(rows)))
    seeded = torch.Generator().manual_seed(3)
    decision = decide(aggregator, total, seeded, precision=precision_of(Rows.of(rows)))
    return torch.cat([decision.apply(*piece) for piece in pieces]), decision


@pytest.mark.parametrize("name", specs())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [(), (5,), (5, 9)])
def test_the_update_is_that_of_whole_rows(name, dtype, bad):
    aggregator = built(name)
    reference = torch.linspace(-1, 1, D, dtype=torch.float64)
    rows = rows_of(dtype, bad)
    given = reference.to(dtype)
    whole = Aggregator(aggregator.rule, aggregator.mix, aggregator.f)(
        rows, given, torch.Generator().manual_seed(3)
    )
    found, decision = in_places(aggregator, rows, given, (60, 61, 200))
    wide = 1e-2 if dtype is torch.bfloat16 else 10 * ILL_CONDITIONED.get(name, 1e-6)
    if is_columnwise(aggregator.rule) and not aggregator.mix and not is_selecting(aggregator.rule):
        assert torch.equal(found, whole.vector)
    else:
        scale = float(whole.vector.abs().max())
        torch.testing.assert_close(found, whole.vector, rtol=wide, atol=wide * scale)
    assert decision.dropped == whole.dropped == bad
    if whole.weights is None:
        assert decision.weights is None
    else:
        torch.testing.assert_close(decision.weights, whole.weights, rtol=1e-4, atol=wide)


@pytest.mark.parametrize("name", specs())
def test_what_does_not_use_the_reference_says_so(name):
    aggregator = built(name)
    if any(map(uses_reference, (*aggregator.mix, aggregator.rule))):
        return
    rows = rows_of(torch.float64)
    one, other = (
        aggregator(rows, torch.full((D,), at, dtype=torch.float64), torch.Generator().manual_seed(3))
        for at in (0.0, 3.0)
    )
    torch.testing.assert_close(one.vector, other.vector)


@pytest.mark.parametrize("name", ["centered_clipping", "monna", "fltrust"])
def test_what_uses_the_reference_says_so(name):
    assert uses_reference(built(name).rule)


def test_distances_are_those_to_the_update():
    rows = rows_of(torch.float64, (4,))
    found, decision = in_places(Aggregator(Krum(f=3, select=5)), rows, None, (100,))
    assert decision.distances.isnan().nonzero().flatten().tolist() == [4]
    kept = [i for i in range(N) if i != 4]
    torch.testing.assert_close(decision.distances[kept], (rows[kept] - found).norm(dim=1))
    assert decision.spread == pytest.approx(float((rows[kept] - found).square().sum(dim=1).mean()))


def test_a_row_that_is_not_finite_in_one_place_has_no_influence_in_another():
    rows = rows_of(torch.float32)
    rows[4, :100] = torch.nan
    other = rows.clone()
    other[4, 100:] = 1e9
    aggregator = Aggregator(Median(), f=2)
    assert torch.equal(
        in_places(aggregator, rows, None, (100,))[0], in_places(aggregator, other, None, (100,))[0]
    )


def test_more_invalid_rows_than_declared_are_an_error():
    with pytest.raises(AggregationError, match="only f = 1 were declared"):
        in_places(Aggregator(Median(), f=1), rows_of(torch.float32, (2, 3)), None, (100,))


def test_rules_of_whole_rows_are_refused():
    assert "whole rows" in refuses(Aggregator(_Whole(), f=1))
    assert "per_block" in refuses(Aggregator(Krum(f=1), per_block=True))
    assert refuses(Aggregator(Krum(f=1))) is None


class _Whole:
    def requires(self, n, f):
        return None

    def aggregate(self, rows):
        return rows.mean(dim=0)
