"""Policies on recorded rounds: in coordinates as on the rows themselves; damage and effort by hand."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from varangian.aggregators import (
    MIXINGS,
    NNM,
    RULES,
    Aggregator,
    Bucketing,
    Krum,
    Mean,
    Median,
    aggregator_from,
)
from varangian.config import loads
from varangian.experiments.redteam.evaluation import EACH_STEP, Judge, damage_of
from varangian.experiments.redteam.recording import (
    COLUMNS,
    LENGTH,
    by_products,
    in_columns,
    in_coordinates,
    moments,
    record,
    window,
)
from varangian.worker.attacks import Composite

H, F, D = 8, 3, 60
POLICIES = [
    Composite(steps=("alie 1.5",)),
    Composite(steps=("min_max_std 1", "ipm 0.5 half memory"), budget=1.0),
    Composite(steps=("mimic 0.7 memory", "away 0.5", "replay 2")),
    Composite(steps=("principal 1", "optimal 8"), budget=2.0),
    Composite(steps=("min_sum_sign 1", "drop 0.5 half", "toward 0.25")),
]


def rounds() -> list[tuple[int, Tensor]]:
    random = torch.Generator().manual_seed(3)
    mean = torch.randn(D, generator=random, dtype=torch.float64)
    return [
        (10 + t, mean + 0.5 * torch.randn(H, D, generator=random, dtype=torch.float64)) for t in range(3)
    ]


def weighted() -> list[str]:
    names = [name for name in RULES if by_products(Aggregator(RULES.build(name, "", {"f": F})))]
    return [
        name for name in names if Aggregator(RULES.build(name, "", {"f": F}), f=F).requires(H + F) is None
    ]


@pytest.mark.whole
@pytest.mark.parametrize("rule", [*weighted(), "nnm+krum", "arc+mean", "nnm+geometric_median"])
def test_coordinates_and_rows_say_the_same(rule: str) -> None:
    aggregator = aggregator_from(rule, "aggregator", f=F)
    reference = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    small = Judge(aggregator, F, (in_coordinates("w", rounds(), reference),))
    whole = Judge(aggregator, F, (in_columns("w", rounds(), reference, 1),))
    assert small.windows[0].rounds[0].honest.shape[1] < D
    for policy in POLICIES:
        found, expected = small(policy), whole(policy)
        assert found.damage == pytest.approx(expected.damage, rel=1e-5, abs=1e-9)
        assert found.effort == pytest.approx(expected.effort, rel=1e-5)


def test_coordinates_keep_all_products() -> None:
    kept = in_coordinates("w", rounds(), None)
    given = torch.cat([rows for _, rows in rounds()])
    found = torch.cat([one.honest for one in kept.rounds])
    torch.testing.assert_close(found @ found.T, given @ given.T)
    first = kept.rounds[0]
    torch.testing.assert_close(first.honest.mean(dim=0), first.mean)
    torch.testing.assert_close(first.sign @ first.mean, rounds()[0][1].mean(dim=0).abs().sum())


def test_noise_is_orthogonal_and_repeats() -> None:
    kept = in_coordinates("w", rounds(), None).rounds[1]
    draw, again = kept.noise(), kept.noise()
    one, other = draw(), draw()
    assert float(one @ other) == 0
    assert not bool((kept.honest @ one).any())
    assert float(one.norm()) == pytest.approx(float(kept.deviation.norm()))
    assert torch.equal(again(), one)


def test_damage_by_hand() -> None:
    mean = torch.tensor([3.0, 4.0])
    assert damage_of(torch.zeros(2), mean) == 0
    assert damage_of(-mean, mean) == 0.5
    assert damage_of(-2 * mean, mean) == 0.8
    assert damage_of(torch.tensor([math.inf, 0.0]), mean) == 1


def test_effect_of_ipm_on_the_mean_by_hand() -> None:
    # Of 8 honest and 3 attackers the mean is (8 - 1.5) / 11 of the honest mean.
    judge = Judge(Aggregator(Mean()), F, (in_columns("w", rounds(), None, 1),))
    found = judge(Composite(steps=("ipm 0.5",)))
    lost = (1 - 6.5 / 11) ** 2
    assert found.damage == pytest.approx(lost / (1 + lost))
    apart = [
        1.5
        * float(rows.mean(dim=0).norm())
        / math.sqrt(float((rows - rows.mean(dim=0)).square().sum()) / H)
        for _, rows in rounds()
    ]
    assert found.effort == pytest.approx(sum(apart) / 3 + EACH_STEP)


def test_a_round_without_an_update_does_no_harm() -> None:
    # Krum takes no 8 rows where 3 may lie, so a round waits for silent attackers.
    judge = Judge(Aggregator(Krum(f=3)), F, (in_columns("w", rounds(), None, 1),))
    assert judge(Composite(steps=("drop 1",))).damage == 0


def test_columns_where_the_rule_looks_at_columns() -> None:
    assert by_products(Aggregator(Krum(f=1), mix=(NNM(f=1),)))
    assert not by_products(Aggregator(Median(), mix=(NNM(f=1),)))
    long = [(0, torch.randn(4, COLUMNS + 10))]
    kept = window("w", long, None, Aggregator(Median()), 1)
    again = window("w", long, None, Aggregator(Median()), 1)
    assert kept.rounds[0].honest.shape == (4, COLUMNS)
    assert torch.equal(kept.rounds[0].honest, again.rounds[0].honest)
    assert "bucketing" in MIXINGS
    random = Judge(Aggregator(Median(), mix=(Bucketing(s=2),)), 2, (kept,))
    assert random(POLICIES[0]) == random(POLICIES[0])


def test_blocks_are_judged_one_by_one() -> None:
    split = Aggregator(Krum(f=2), per_block=True)
    assert not by_products(split)
    blocks = (40, 20)
    kept = window("w", rounds(), None, split, 1, blocks)
    assert (kept.blocks, kept.rounds[0].honest.shape) == (blocks, (H, D))
    again = replace(kept, blocks=(D,))
    whole = Judge(Aggregator(Krum(f=2)), 2, (kept,))
    for policy in POLICIES[:4]:
        assert Judge(split, 2, (again,))(policy).damage == pytest.approx(whole(policy).damage)
    assert Judge(split, 2, (kept,))(POLICIES[3]) != whole(POLICIES[3])


def test_moments_do_not_overlap() -> None:
    assert moments(200) == (10, 60, 180)
    assert moments(12) == (0, 8)
    assert moments(2) == (0,)
    starts = moments(20)
    assert all(b - a >= LENGTH for a, b in pairwise(starts))


def test_recording_a_training() -> None:
    settings = {"model": "softmax", "rounds": 8, "workers": 5, "f": 1, "aggregator": "krum"}
    config = loads({**settings, "backend": "simulate", "simulate": {"gradients": "batched"}})
    kept = record(config, "clean", 1)
    assert [one.name for one in kept] == ["clean, rounds 0 to 3", "clean, rounds 4 to 7"]
    assert all(len(one.rounds) == LENGTH and len(one.rounds[0].honest) == 4 for one in kept)
    assert kept[0].reference is None
    assert kept[1].reference is not None
    again = record(config, "clean", 1)
    assert torch.equal(again[1].rounds[3].honest, kept[1].rounds[3].honest)


def test_rounds_of_workers_with_weights() -> None:
    """The damage is that to the weighted mean, by the rule with these weights; who is silent has none."""
    weights = {"w00": 4, "w01": 1, "w02": 2, "w03": 3, "w04": 3}
    settings = {"model": "softmax", "rounds": 4, "workers": 5, "f": 1, "aggregator": "trimmed_mean"}
    config = loads({**settings, "weights": weights, "backend": "simulate"})
    (kept,) = record(config, "clean", 1)
    assert {one.weights for one in kept.rounds} == {(4.0, 1.0, 2.0, 3.0, 3.0)}
    share = torch.tensor([0.4, 0.1, 0.2, 0.3])
    error = total = torch.zeros(kept.rounds[0].honest.shape[1])
    policy = Composite(steps=("ipm 1",))
    for one in kept.rounds:
        sent, mean = one.mean - 2 * one.mean, share @ one.honest
        rows = torch.stack([*one.honest, sent])
        error = error + (config.aggregator(rows, weights=[*weights.values()]).vector - mean)
        total = total + mean
    found = Judge(config.aggregator, 1, (kept,))(policy).damage
    assert found == pytest.approx(damage_of(error, total), rel=0.02)
    silent = Judge(config.aggregator, 1, (kept,))(Composite(steps=("drop 1",)))
    assert math.isfinite(silent.damage)


def test_numbers_of_samples_are_weights_too() -> None:
    settings = {"model": "softmax", "rounds": 4, "workers": 5, "f": 1, "aggregator": "median"}
    dealt = {
        "partition": {"dirichlet": {"alpha": 1}},
        "weights": "samples",
        "weights_cap": {"alpha_star": 0.3},
    }
    (kept,) = record(loads({**settings, **dealt, "backend": "simulate"}), "clean", 1)
    assert len({*kept.rounds[0].weights}) > 1
