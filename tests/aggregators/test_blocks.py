"""A rule for each block: other rows in each, one screening of all, and the same guarantee."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    MIXINGS,
    NNM,
    RULES,
    AggregationError,
    Aggregator,
    Bucketing,
    Flag,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    RowsError,
    aggregator_from,
)
from varangian.worker.attacks import Knowledge, OneBlock

BLOCKS = (24, 0, 15, 1)
SETTINGS = {"clipping": {"radius": 3.0}}


def slices(rows: Tensor) -> list[Tensor]:
    return list(rows.split(BLOCKS, dim=-1))


def blockwise(spec: object, f: int = kit.F) -> Aggregator:
    return aggregator_from({"rule": spec, "per_block": True}, "aggregator", f=f)


def test_krum_takes_another_row_in_each_block_by_hand() -> None:
    """Row 0 lies in the first block and row 4 in the second; whole rows 1 and 2 differ least."""
    first = torch.tensor([[90.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.1, 0.0], [1.2, 0.0]])
    second = torch.tensor([[5.0], [5.1], [7.0], [5.2], [-80.0]])
    found = Aggregator(Krum(f=1), per_block=True)(torch.cat([first, second], dim=1), blocks=(2, 1))
    assert found.vector.tolist() == pytest.approx([1.1, 0.0, 5.1])
    assert found.weights is not None
    assert found.weights.tolist() == pytest.approx([0, 1 / 3, 0, 2 / 3, 0])
    apart = (first - first[3]).square().sum() + (second - second[1]).square().sum()
    assert found.spread == pytest.approx(float(apart) / 5)


@pytest.mark.parametrize("mixing", [None, "nnm", "clipping", "bucketing"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_block_is_aggregated_as_it_would_be_alone(rule: str, mixing: str | None) -> None:
    mix = [] if mixing is None else [{mixing: SETTINGS.get(mixing, {})}]
    aggregator = aggregator_from({"mix": mix, "rule": rule, "per_block": True}, "aggregator", f=1)
    rows, reference = kit.rows_of("plain", dtype=torch.float32), torch.randn(kit.D)
    found = aggregator(rows, reference, kit.rng(), blocks=BLOCKS)
    single, pairs = replace(aggregator, per_block=False), zip(slices(rows), slices(reference), strict=True)
    wanted = [single(part, last, kit.rng()).vector for part, last in pairs if part.numel()]
    assert torch.equal(found.vector, torch.cat(wanted))
    assert found.details == {}


@pytest.mark.parametrize("rule", ["krum", "nnm+median", "bucketing+geometric_median", "flag"])
def test_row_that_is_not_finite_in_one_block_is_dropped_from_all(rule: str) -> None:
    rows = kit.rows_of("plain", dtype=torch.float32)
    bad = rows.clone()
    bad[3, 30] = torch.nan
    bad[8, 1] = torch.inf
    kept = [i for i in range(kit.N) if i not in (3, 8)]
    found = blockwise(rule)(bad, None, kit.rng(), blocks=BLOCKS)
    wanted = blockwise(rule)(rows[kept], None, kit.rng(), faults=2, blocks=BLOCKS)
    assert found.dropped == (3, 8)
    assert torch.equal(found.vector, wanted.vector)
    if found.weights is not None and wanted.weights is not None:
        assert torch.equal(found.weights[kept], wanted.weights)
        assert not found.weights[[3, 8]].any()
    bad[9, -1] = torch.nan
    with pytest.raises(AggregationError, match="3 of 15 rows are provably invalid, but only f = 2"):
        blockwise(rule)(bad, None, kit.rng(), blocks=BLOCKS)


def test_part_that_names_a_row_follows_it_when_others_are_dropped() -> None:
    rows = kit.plain(7, 6)
    rows[1, 0] = torch.nan
    trusting = Aggregator(MoNNA(f=1, pivot=2), per_block=True)
    without = Aggregator(MoNNA(f=0, pivot=1), per_block=True)
    kept = rows[[0, 2, 3, 4, 5, 6]]
    assert torch.equal(trusting(rows, blocks=(3, 3)).vector, without(kept, blocks=(3, 3)).vector)


def test_groups_of_bucketing_are_the_same_in_all_blocks() -> None:
    half = kit.plain(15, 4)
    aggregator = Aggregator(Krum(f=1), (Bucketing(s=2),), per_block=True)
    found = aggregator(torch.cat([half, half], dim=1), None, kit.rng(), blocks=(4, 4))
    assert torch.equal(found.vector[:4], found.vector[4:])
    torch.manual_seed(3)
    one = aggregator(half, blocks=(4,)).vector
    torch.manual_seed(3)
    assert torch.equal(aggregator(half, blocks=(4,)).vector, one)


def test_coordinatewise_rule_alone_needs_no_blocks() -> None:
    rows = kit.plain(9, 6)
    assert not Aggregator(Median(), per_block=True).splits
    assert Aggregator(Median(), (NNM(f=1),), per_block=True).splits
    assert torch.equal(Aggregator(Median(), per_block=True)(rows).vector, Aggregator(Median())(rows).vector)


def test_the_mean_is_the_mean() -> None:
    rows = kit.rows_of("plain", dtype=torch.float32)
    found, whole = blockwise("mean")(rows, blocks=BLOCKS), Aggregator(Mean())(rows)
    assert torch.equal(found.vector, whole.vector)
    assert found.weights is not None
    assert whole.weights is not None
    torch.testing.assert_close(found.weights, whole.weights)


@pytest.mark.parametrize("blocks", [None, (39,), (20, 21), (50, -10)])
def test_wrong_sizes_are_refused(blocks: tuple[int, ...] | None) -> None:
    with pytest.raises(RowsError, match="`blocks` should be"):
        blockwise("krum")(kit.plain(kit.N, 40), blocks=blocks)


@pytest.mark.parametrize("spec", ["krum", "nnm+median", "tests.aggregators.test_blocks:first"])
def test_update_is_in_the_memory_of_the_caller(spec: str) -> None:
    rows = kit.rows_of("plain", dtype=torch.float32)
    into, wanted = torch.empty(kit.D), blockwise(spec)(rows, blocks=BLOCKS).vector
    assert blockwise(spec)(rows, blocks=BLOCKS, into=into).vector is into
    assert torch.equal(into, wanted)
    wider = blockwise(spec)(rows.double(), blocks=BLOCKS, into=into)
    assert wider.vector.dtype == torch.float64
    halves = blockwise(spec)(rows.bfloat16(), blocks=BLOCKS, into=into).vector
    torch.testing.assert_close(halves, wanted, atol=0.05, rtol=0.05)


def first(rows: Tensor) -> Tensor:
    return rows[0]


def test_arrays_and_references_of_numpy() -> None:
    rows = kit.plain(7, 6)
    aggregator = Aggregator(Krum(f=1), per_block=True)
    last: object = np.zeros(6)
    found = aggregator(rows.numpy(), last, blocks=(2, 4))  # type: ignore[arg-type]
    assert torch.equal(found.vector, aggregator(rows, blocks=(2, 4)).vector)


@pytest.mark.parametrize("mixing", [None, *sorted(set(MIXINGS) - {"clipping"})])
def test_guarantee_and_condition_are_those_of_whole_vectors(mixing: str | None) -> None:
    for rule in RULES:
        whole = aggregator_from(rule if mixing is None else f"{mixing}+{rule}", "aggregator", f=2)
        split = replace(whole, per_block=True)
        assert split.requires(4) == whole.requires(4)
        assert split.kappa(15) == whole.kappa(15)


@pytest.mark.parametrize("rule", [Krum(f=3), GeometricMedian(), Flag()])
def test_one_block_moves_it_less_than_whole_vectors_would_let_it(
    rule: Krum | GeometricMedian | Flag,
) -> None:
    """The last 10 of 1000 coordinates are to move; a rule for each block sees nothing else there."""
    random, blocks = torch.Generator().manual_seed(5), (990, 10)
    honest = 0.1 + torch.randn(12, 1000, generator=random)
    knows = Knowledge(honest, 15, 3, 0, 0, random, torch.zeros(1000), blocks=blocks)
    rows = torch.cat([honest, OneBlock()(honest[0], knows).expand(3, -1)])
    mean = honest.mean(dim=0)
    whole, split = (
        Aggregator(rule, per_block=per_block)(rows, mean, blocks=blocks).vector - mean
        for per_block in (False, True)
    )
    assert float(split[-10:].norm()) < float(whole[-10:].norm()) / 3
