import torch
from hypothesis import given
from hypothesis import strategies as st

from varangian.worker.data import batches
from varangian.worker.data.batches import BatchSampler


def drawn(shard, batch_size, seed=1, worker="w00", round=0):
    return BatchSampler({worker: shard}, batch_size, seed).indices(worker, round)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_uses_no_sample_twice(samples, batch_size, epoch):
    shard = torch.arange(samples) * 3
    size = min(batch_size, samples)
    count = samples // size
    rounds = range(epoch * count, (epoch + 1) * count)
    sampler = BatchSampler({"w00": shard}, batch_size, 1)
    found = torch.cat([sampler.indices("w00", round) for round in rounds])
    assert len(found) == count * size
    assert len(found.unique()) == len(found)
    assert bool(torch.isin(found, shard).all())


def test_batches_differ_by_worker_epoch_and_seed():
    shard = torch.arange(64)
    found = [
        drawn(shard, 64, seed, worker, round)
        for seed, worker, round in [(1, "w00", 0), (1, "w01", 0), (1, "w00", 1), (2, "w00", 0)]
    ]
    assert len({tuple(batch.tolist()) for batch in found}) == 4
    assert torch.equal(found[0], drawn(shard, 64))


def test_batches_of_several_workers_and_steps_are_those_of_each_in_any_order(monkeypatch):
    shards = {f"w{i:02}": torch.arange(10 + i) for i in range(4)}
    asked = [(round, step) for round in (0, 1, 2, 3, 9, 1) for step in (0, 2)]
    expected = [
        torch.stack([BatchSampler(shards, 4, 1).indices(name, *when) for name in shards]) for when in asked
    ]
    for kept in (1 << 20, 30, 1):
        monkeypatch.setattr(batches, "KEPT", kept)
        sampler = BatchSampler(shards, 4, 1)
        assert all(
            torch.equal(sampler.stacked([*shards], *when), one)
            for when, one in zip(asked, expected, strict=True)
        )
