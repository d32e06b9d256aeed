import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.registry import ConfigError
from varangian.worker.data.partition import (
    PARTITIONS,
    Dirichlet,
    Extreme,
    GammaSimilarity,
    Halves,
    Iid,
    PartitionError,
    Shards,
    Shared,
)
from varangian.worker.simulation.availability import Alternating, WorkerIndex

pytestmark = pytest.mark.usefixtures("untouched_generator")

LABELS = torch.arange(200) % 10
KINDS = st.sampled_from(
    [Iid(), Dirichlet(), Dirichlet(0.01), Dirichlet(100.0), Shards(1), Shards(3), Extreme()]
    + [GammaSimilarity(gamma) for gamma in (0.0, 0.4, 1.0)]
)


@settings(max_examples=examples(60))
@given(KINDS, st.integers(1, 12), st.integers(0, 5), st.lists(st.integers(0, 4), min_size=36, max_size=60))
def test_every_sample_goes_to_one_worker_and_every_worker_has_one(kind, workers, seed, labels):
    shards = kind.split(torch.tensor(labels), workers, seed)
    assert len(shards) == workers
    assert all(len(shard) > 0 for shard in shards)
    assert torch.equal(torch.cat(shards).sort().values, torch.arange(len(labels)))
    assert all(torch.equal(shard, shard.sort().values) for shard in shards)


@pytest.mark.parametrize("kind", [Iid(), Dirichlet(), Halves(), Shards(), GammaSimilarity()])
def test_a_partition_is_a_function_of_the_seed(kind):
    first, again, other = (kind.split(LABELS, 5, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_shared_samples_are_everybodys():
    shards = Shared().split(LABELS, 3, 1)
    assert [shard.tolist() for shard in shards] == [list(range(200))] * 3
    with pytest.raises(PartitionError, match="at least 1"):
        Shared().split(LABELS[:0], 3, 1)


def test_iid_shares_are_equal():
    sizes = [len(shard) for shard in Iid().split(LABELS, 15, 1)]
    assert set(sizes) == {13, 14}


def test_shards_hold_few_classes():
    shards = Shards(per_worker=2).split(LABELS, 10, 1)
    assert [len(shard) for shard in shards] == [20] * 10
    assert all(len(LABELS[shard].unique()) <= 2 for shard in shards)


@pytest.mark.parametrize("workers", [2, 7, 12])
def test_halves_of_the_classes_come_and_go_with_the_halves_of_the_workers(workers):
    shards = Halves().split(LABELS, workers, 1)
    assert torch.equal(torch.cat(shards).sort().values, torch.arange(len(LABELS)))
    availability = Alternating(period=4)
    for round in range(8):
        there = [w for w in range(workers) if availability.available(WorkerIndex(1, w, workers), round)]
        seen = {int(label) for w in there for label in LABELS[shards[w]]}
        assert seen == ({0, 1, 2, 3, 4} if round % 4 < 2 else {5, 6, 7, 8, 9})


def test_halves_are_dealt_in_equal_parts():
    sizes = [len(shard) for shard in Halves().split(LABELS, 12, 1)]
    assert set(sizes) == {16, 17}


@pytest.mark.parametrize(
    ("labels", "workers", "words"),
    [([0, 1], 1, "1 and 2"), ([3, 3], 2, "2 and 1"), ([0, 1], 4, "at least 2.*Found 1")],
)
def test_halves_that_cannot_be_made(labels, workers, words):
    with pytest.raises(PartitionError, match=words):
        Halves().split(torch.tensor(labels), workers, 1)


def distance_from_even(shards):
    shares = [torch.bincount(LABELS[shard], minlength=10) / len(shard) for shard in shards]
    return torch.stack([(share - 0.1).abs().sum() for share in shares]).mean()


def test_a_smaller_alpha_makes_workers_less_alike():
    alike, medium, apart = (distance_from_even(Dirichlet(a).split(LABELS, 5, 1)) for a in (1e4, 1.0, 0.05))
    assert alike < 0.5 * medium < 0.5 * apart


@pytest.mark.parametrize(("kind", "words"), [(Iid(), "at least 8"), (Dirichlet(), "8"), (Shards(), "16")])
def test_too_few_samples(kind, words):
    with pytest.raises(PartitionError, match=rf"{words} training samples.*Found 7"):
        kind.split(torch.zeros(7, dtype=torch.int64), 8, 1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha(alpha):
    with pytest.raises(ConfigError, match="positive number"):
        PARTITIONS.build({"dirichlet": {"alpha": alpha}}, "partition")


def test_bad_shards():
    with pytest.raises(ConfigError, match="at least 1"):
        PARTITIONS.build({"shards": {"per_worker": 0}}, "partition")


def test_extreme_skew_gives_each_worker_the_next_classes():
    assert [LABELS[shard].unique().tolist() for shard in Extreme().split(LABELS, 5, 1)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
    ]


def test_gamma_is_the_share_that_is_dealt_at_random():
    none, half, all_alike = (GammaSimilarity(gamma).split(LABELS, 5, 1) for gamma in (0.0, 0.5, 1.0))
    assert all(map(torch.equal, none, Extreme().split(LABELS, 5, 1)))
    assert distance_from_even(all_alike) < 0.5 * distance_from_even(half) < distance_from_even(none)
    for worker, shard in enumerate(half):  # of 40 samples 20 are sorted, and 4 of the others expected
        own = torch.isin(LABELS[shard], torch.tensor([2 * worker, 2 * worker + 1]))
        assert 15 <= int(own.sum()) <= 32


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_bad_gamma(gamma):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        PARTITIONS.build({"gamma_similarity": {"gamma": gamma}}, "partition")
