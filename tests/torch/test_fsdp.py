"""`robust_fsdp`: fully sharded models whose replicas are rows, on real processes."""

import pytest
import torch
from tests.torch.ranks import on_ranks
from tests.torch.test_ddp import Net, batch, flat
from torch import nn

from varangian.aggregators import aggregator_from
from varangian.torch import robust_fsdp

REPLICAS, SHARDS = 3, 2


def meshes():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (REPLICAS, SHARDS), mesh_dim_names=("replicas", "shards"))


def sharded(mesh, seed=7):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    model = Net()
    for layer in (model.first, model.second):
        fully_shard(layer, mesh=mesh["shards"])
    return fully_shard(model, mesh=mesh["shards"])


def whole_gradient(model):
    """Of all shards of this replica, flat, with zeros where there is none."""
    return flat(
        [torch.zeros(p.shape) if p.grad is None else p.grad.full_tensor() for p in model.parameters()]
    )


def compare(rank, spec, bad, passes, weights=None):
    """Steps of a sharded model, and the rule on gradients of plain models, one for each replica."""
    import varangian.torch.fsdp

    varangian.torch.fsdp.AT_ONCE = 4000  # several buckets for the small model
    mesh = meshes()
    # Only replica 0 has the parameters of the others.
    model = sharded(mesh, seed=7 if rank < SHARDS else rank)
    records = []
    reduction = robust_fsdp(
        model, mesh["replicas"], spec, 1, seed=3, on_step=records.append, on_error="nan", weights=weights
    )
    torch.manual_seed(7)
    plain, last, found = Net(), None, []
    learn, beside = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain))
    for step in range(4):
        model.zero_grad()
        rows = []
        for replica in range(REPLICAS):
            plain.zero_grad()
            for at in range(passes):
                for shard in range(SHARDS):
                    place = SHARDS * replica + shard
                    loss = plain(batch(place, 10 * step + at), True) * bad.get(place, 1.0)
                    (loss / SHARDS).backward()
            rows.append(flat([p.grad for p in plain.parameters()]).clone())
        for at in range(passes):
            model.set_requires_gradient_sync(at == passes - 1)
            (model(batch(rank, 10 * step + at), True) * bad.get(rank, 1.0)).backward()
        whole = reduction.aggregator(torch.stack(rows), last, reduction.generator(step), weights=weights)
        last = whole.vector
        update = whole_gradient(model)
        found.append(float((update - last).abs().max() / last.abs().max()))
        for p, part in zip(
            plain.parameters(), last.split([p.numel() for p in plain.parameters()]), strict=True
        ):
            p.grad = part.clone().view_as(p)
        learn.step()
        beside.step()
    return found, [(r.dropped, r.weights, sorted(r.far)) for r in records]


CASES = [
    ("median", {}, 1),
    ("nnm+trimmed_mean", {3: -1000.0}, 1),
    ("centered_clipping", {4: float("nan")}, 1),
    ("multi_krum", {0: 50.0}, 2),
]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("spec", "bad", "passes"), CASES, ids=[case[0] for case in CASES])
def test_the_update_is_that_of_gradients_of_whole_replicas(spec, bad, passes, tmp_path):
    if aggregator_from(spec, "aggregator", f=1).requires(REPLICAS, 1):
        spec = "arc+caf"
    answers = on_ranks(REPLICAS * SHARDS, compare, tmp_path, spec, bad, passes)
    worst = [rank // SHARDS for rank in bad]
    for found, records in answers:
        assert max(found) < 3e-6
        assert str(records) == str(answers[0][1])
        for dropped, weights, far in records:
            assert [*dropped] == (worst if spec == "centered_clipping" else [])
            if worst and not dropped:
                assert far == worst or weights[worst[0]] == 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_replicas_have_weights(tmp_path):
    """The update is that of the rule with these weights, and not of the one without."""
    weights = [1.0, 1.0, 1.5]
    for found, _ in on_ranks(REPLICAS * SHARDS, compare, tmp_path, "geometric_median", {}, 1, weights):
        assert max(found) < 3e-6


def misused(rank):
    from torch.distributed.fsdp import fully_shard

    mesh, said = meshes(), []
    for make in (
        lambda: robust_fsdp(nn.Linear(2, 2), mesh["replicas"]),
        lambda: robust_fsdp(fully_shard(nn.Linear(2, 2), mesh=mesh), mesh["replicas"]),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], "median", 2),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], weights=[1.0] * 6),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], audit=0.1),
    ):
        try:
            make()
        except ValueError as error:
            said.append(str(error))
    return said


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_that_are_not_sharded_in_that_way_are_refused(tmp_path):
    for plain, averaged, many, weights, audit in on_ranks(REPLICAS * SHARDS, misused, tmp_path):
        assert plain.startswith("model: should have fully_shard applied to it. Found Linear.")
        assert "should be sharded on a mesh of one dimension" in averaged
        assert "a mesh of 2 dimensions" in averaged
        assert "no guarantee for 3 ranks of which 2 may be faulty" in many
        assert weights.startswith("weights: should be one for each of 3 ranks.")
        assert audit.startswith("audit: should be 0 with fully sharded models. Found 0.1:")
