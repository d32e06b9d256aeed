"""Rows of fragments: workers are weighed by the latest rows of all fragments."""

import pytest
import torch

from varangian.aggregators import NNM, Aggregator, Flag, Krum
from varangian.aggregators.rules.median import Median
from varangian.protos.layout import Fragments, Layout
from varangian.protos.payloads.encoding import put, take
from varangian.server.protocol.events import Close
from varangian.server.rows.fragments import Fragmented, _among
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

LAYOUT = Layout((("a", (5, 4)), ("b", (4,)), ("c", (3, 5)), ("d", (2,)), ("e", (9,))))
SPLIT = Fragments(LAYOUT, 2)
D, NAMES = LAYOUT.numel, tuple(f"w{i:02d}" for i in range(8))


def vectors(seed=1, names=NAMES, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: 1 + spread * torch.randn(D, generator=generator) for name in names}


def close(round, names=NAMES):
    return Close(round, frozenset(names), {}, (), 0.0, "all are there")


def learner(rule, rounds=9, **options):
    return Learner(
        torch.zeros(D), Aggregator(rule, **options), Sgd(lr=1.0), rounds=rounds, seed=1, fragments=SPLIT
    )


def step(learner, source, round, rows, faults=None):
    slices = SPLIT.slices[SPLIT.of(round)]
    padded = {}
    for name, row in rows.items():
        padded[name] = torch.full((max(SPLIT.numels),), torch.nan)  # what another round has left there
        padded[name][: SPLIT.numels[SPLIT.of(round)]] = take(row, slices)
    given = source.step_input(close(round, rows), padded)
    return learner.step(round, given.rows, faults or {}, measure=given.measure, fresh=given.fresh)


@pytest.mark.parametrize("rule", [Krum(f=2), Flag(), Krum(f=1, select=3)], ids=str)
def test_once_all_fragments_were_there_weights_are_those_of_whole_vectors(rule):
    ours, source, rows = learner(rule), Fragmented(SPLIT), vectors()
    step(ours, source, 0, rows)
    whole = Learner(torch.zeros(D), Aggregator(rule), Sgd(lr=1.0), rounds=9, seed=1)
    second, expected = step(ours, source, 1, rows), whole.step(0, rows, {})
    assert second.weights == pytest.approx(expected.weights, abs=1e-6)
    slices = SPLIT.slices[1]
    assert torch.allclose(take(ours.parameters, slices), take(whole.parameters, slices), atol=1e-5)


def with_an_attacker():
    """Rows of which w05 is the mean of all in fragment 1, and 50 times as long as others in fragment 0."""
    rows = vectors(spread=0.01)
    mean = torch.stack([*rows.values()]).mean(0)
    put(rows["w05"], SPLIT.slices[0], 50 * take(mean, SPLIT.slices[0]))
    put(rows["w05"], SPLIT.slices[1], take(mean, SPLIT.slices[1]))
    return rows


def test_an_attacker_in_one_fragment_is_left_out_in_all():
    """Judged by each fragment alone, it is among the nearest where it is honest."""
    rule, rows = Krum(f=1, select=4), with_an_attacker()
    ours, source = learner(rule), Fragmented(SPLIT)
    step(ours, source, 0, rows)
    assert step(ours, source, 1, rows).weights["w05"] == 0
    assert step(learner(rule), Fragmented(SPLIT), 1, rows).weights["w05"] == pytest.approx(1 / 4)


def test_who_was_away_is_as_far_from_the_mean_as_the_farthest():
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(4, 7, generator=generator, dtype=torch.float64)  # the last is the reference
    products = points @ points.T
    filled = _among(("w00", "w01", "w02", "w03"), ("w00", "w01", "w03"), products)
    assert torch.linalg.eigvalsh(filled).min() > -1e-9
    there = [0, 1, 3, 4]
    assert torch.allclose(filled[there][:, there], products)
    mean = torch.tensor([1, 1, 0, 1, 0], dtype=torch.float64) / 3
    apart = torch.eye(5, dtype=torch.float64) - mean
    distances = (apart @ filled @ apart.T).diagonal()[:4]
    assert distances[2] == pytest.approx(float(distances[[0, 1, 3]].max()))


@pytest.mark.parametrize("rule", [Median(), Krum(f=2)], ids=str)
def test_mixings_go_by_all_fragments_and_single_columns_by_themselves(rule):
    rows = vectors()
    ours, source = learner(rule, mix=(NNM(f=2),)), Fragmented(SPLIT)
    for round in (0, 1):
        step(ours, source, round, rows)
    whole = Learner(torch.zeros(D), Aggregator(rule, mix=(NNM(f=2),)), Sgd(lr=1.0), rounds=9, seed=1)
    whole.step(0, rows, {})
    slices = SPLIT.slices[1]
    assert torch.allclose(take(ours.parameters, slices), take(whole.parameters, slices), atol=1e-5)


def test_a_median_is_that_of_whole_vectors():
    rows, ours, source = vectors(), learner(Median()), Fragmented(SPLIT)
    for round in (0, 1):
        step(ours, source, round, rows)
    expected = torch.stack([*rows.values()]).sort(dim=0).values[3:5].mean(0)
    assert torch.allclose(-ours.parameters, expected, atol=1e-6)


def test_it_goes_on_with_the_same_bits():
    rule = Flag()
    straight, source = learner(rule), Fragmented(SPLIT)
    kept = None
    for round in range(7):
        step(straight, source, round, vectors(round, NAMES[: 8 - round % 2]))
        if round == 3:
            kept = torch.utils._pytree.tree_map(
                lambda x: x.clone() if isinstance(x, torch.Tensor) else x,
                (straight.state(), source.state()),
            )
    again, other = learner(rule), Fragmented(SPLIT)
    again.restore(kept[0])
    other.restore(kept[1])
    for round in range(4, 7):
        step(again, other, round, vectors(round, NAMES[: 8 - round % 2]))
    assert torch.equal(again.parameters, straight.parameters)


def test_who_has_left_is_forgotten():
    source, ours = Fragmented(SPLIT), learner(Krum(f=1))
    for round in (0, 1):
        step(ours, source, round, vectors())
    source.forget("w01")
    source.change([*NAMES[2:], "w09"], 0)
    assert [kept["workers"] for kept in source.state().values()] == [[*NAMES[2:]]] * 2
    assert all(kept["products"].shape == (7, 7) for kept in source.state().values())
    source.change(["w09"], 0)
    assert source.state() == {}
