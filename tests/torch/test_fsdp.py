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


def small_parts(at_once=4000):
    """Several parts for the small model."""
    import varangian.torch.fsdp

    varangian.torch.fsdp.AT_ONCE, varangian.torch.fsdp.SMALL = at_once, 100


def whole_gradient(model):
    """Of all shards of this replica, flat, with zeros where there is none."""
    return flat(
        [torch.zeros(p.shape) if p.grad is None else p.grad.full_tensor() for p in model.parameters()]
    )


def compare(rank, spec, bad, passes, weights=None, beta=0.0):
    """Steps of a sharded model, and the rule on gradients of plain models, one for each replica."""
    small_parts()
    mesh = meshes()
    # Only replica 0 has the parameters of the others.
    model = sharded(mesh, seed=7 if rank < SHARDS else rank)
    records = []
    reduction = robust_fsdp(
        model,
        mesh["replicas"],
        spec,
        1,
        seed=3,
        on_step=records.append,
        on_error="nan",
        weights=weights,
        momentum=beta,
    )
    torch.manual_seed(7)
    plain, last, found, momenta = Net(), None, [], [0.0] * REPLICAS
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
            row = flat([p.grad for p in plain.parameters()]).clone()
            momenta[replica] = beta * momenta[replica] + (1 - beta) * row
            rows.append(momenta[replica])
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


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", ["nnm+trimmed_mean", "centered_clipping"])
def test_replicas_have_momentum(spec, tmp_path):
    for found, _ in on_ranks(REPLICAS * SHARDS, compare, tmp_path, spec, {3: -1000.0}, 1, None, 0.9):
        assert max(found) < 3e-6


def stepped(model, rank, place):
    model.zero_grad()
    model(batch(rank, place), True).backward()
    return whole_gradient(model)


def resumes(rank, spec, options):
    """Steps, those of another model with the state of the first, and what is said of another's state."""
    small_parts()
    mesh, parts, said, state = meshes(), [], [], None
    for _ in range(2):
        model = sharded(mesh)
        reduction = robust_fsdp(model, mesh["replicas"], spec, 1, **options)
        if state:
            others = {**state, "rank": (rank + 1) % (REPLICAS * SHARDS)}
            for wrong in (others, {**state, "reference": {"third": torch.ones(2)}}):
                try:
                    reduction.load_state_dict(wrong)
                except ValueError as error:
                    said.append(str(error))
            reduction.load_state_dict(state)
        else:
            before = [stepped(model, rank, place) for place in range(2)]
            state = reduction.state_dict()
        parts.append([stepped(model, rank, place) for place in (2, 3)])
    assert not torch.equal(*before)
    return parts, said, [p.grad is None for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.5}, pytest.param({"momentum": 0.5, "per_bucket": True}, marks=pytest.mark.exhaustive)],
)
def test_a_sharded_model_resumes_with_the_same_bits(options, tmp_path):
    """With the momentum and the reference of the shards here, of which one is empty."""
    for (one, other), (rank, name), _ in on_ranks(
        REPLICAS * SHARDS, resumes, tmp_path, "centered_clipping", options
    ):
        assert all(map(torch.equal, one, other))
        assert rank.startswith("state.rank: should be ")
        assert name.startswith("state.reference: should have names of parameters")


def decides_by_module(rank):
    """Steps with a decision for each part, and the rule on the gathered gradients of each."""
    import torch.distributed as dist

    small_parts(1 << 20)  # none is of a part of a module
    mesh = meshes()
    model, alone = sharded(mesh), sharded(mesh)
    reduction = robust_fsdp(model, mesh["replicas"], "arc+caf", 1, per_bucket=True, seed=3)
    group, apart = mesh["replicas"].get_group(), []
    modules = [model.first, model.second]
    for step in range(2):
        for each in (model, alone):
            each.zero_grad()
            (each(batch(rank, step), True) * (-1000.0 if rank < SHARDS else 1.0)).backward()
        for module, other in zip(modules, (alone.first, alone.second), strict=True):
            mine = whole_gradient(other)
            rows = [torch.empty_like(mine) for _ in range(REPLICAS)]
            dist.all_gather(rows, mine, group=group)
            update = reduction.aggregator(torch.stack(rows), None, reduction.generator(step)).vector
            apart.append(float((whole_gradient(module) - update).abs().max() / update.abs().max()))
    return apart, reduction.last.weights


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_decision_for_each_module_is_that_of_its_gathered_gradients(tmp_path):
    for apart, weights in on_ranks(REPLICAS * SHARDS, decides_by_module, tmp_path):
        assert max(apart) < 3e-6
        assert weights[0] < min(weights[1:])


def where_gradients_are(rank):
    """Which parts are exchanged from where FSDP has written them, and whether the update is there."""
    small_parts()
    mesh = meshes()
    model = sharded(mesh)
    reduction = robust_fsdp(model, mesh["replicas"], "median", 1)
    taken, take = [], reduction.take

    def noted(bucket):
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        inside = {grad.to_local().untyped_storage().data_ptr() for grad in grads}
        taken.append(bucket.buffer().untyped_storage().data_ptr() in inside)
        return take(bucket)

    reduction.take = noted
    stepped(model, rank, 0)
    return taken


@pytest.mark.slow
@pytest.mark.exhaustive
def test_gradients_are_not_copied_where_they_lie_together(tmp_path):
    """Those of `first` have 301 rows, which two ranks cannot share evenly: a gap is behind the last one."""
    for rank, taken in enumerate(on_ranks(REPLICAS * SHARDS, where_gradients_are, tmp_path)):
        assert len(taken) > 2
        assert all(taken[1:]) or rank % 2


def fails_in_between(rank):
    """A step that fails on all ranks in the middle of its backward pass, and the next one."""
    mesh = meshes()
    model = sharded(mesh)
    reduction = robust_fsdp(model, mesh["replicas"], "median", 1)
    stepped(model, rank, 0)

    def fail(gradient):
        raise RuntimeError("in the middle")

    hidden = model.first.register_forward_hook(lambda module, given, out: out.register_hook(fail) and None)
    with pytest.raises(RuntimeError, match="in the middle"):
        stepped(model, rank, 1)
    hidden.remove()
    model._get_fsdp_state()._reset_iter_state()
    return reduction.last.step, stepped(model, rank, 2), reduction.last.step


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_after_one_that_failed_is_reduced(tmp_path):
    answers = on_ranks(REPLICAS * SHARDS, fails_in_between, tmp_path)
    for before, update, after in answers:
        assert (before, after) == (0, 1)
        assert torch.equal(update, answers[0][1])


def uses_alone(rank):
    """Steps with weight decay, where one replica alone uses a layer, whose median is zero."""
    mesh = meshes()
    model = sharded(mesh)
    robust_fsdp(model, mesh["replicas"], "median", 1)
    learn = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    before = model.spare.weight.full_tensor().clone()
    for step in range(2):
        learn.zero_grad()
        model(batch(rank, step), rank < SHARDS).backward()
        learn.step()
    return before, flat([p.detach().full_tensor() for p in model.spare.parameters()])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_replicas_stay_the_same_where_one_alone_uses_a_layer(tmp_path):
    answers = on_ranks(REPLICAS * SHARDS, uses_alone, tmp_path)
    before, first = answers[0]
    assert not torch.equal(before.flatten(), first[: before.numel()])
    for _, after in answers:
        assert torch.equal(after, first)


def stepping(model):
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(print)
    return model


def misused(rank):
    from torch.distributed.fsdp import fully_shard

    mesh, said = meshes(), []
    for make in (
        lambda: robust_fsdp(nn.Linear(2, 2), mesh["replicas"]),
        lambda: robust_fsdp(fully_shard(nn.Linear(2, 2), mesh=mesh), mesh["replicas"]),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], "median", 2),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], weights=[1.0] * 6),
        lambda: robust_fsdp(sharded(mesh), mesh["replicas"], audit=0.1),
        lambda: robust_fsdp(sharded(mesh), mesh),
        lambda: robust_fsdp(sharded(mesh), mesh["shards"]),
        lambda: robust_fsdp(stepping(sharded(mesh)), mesh["replicas"]),
    ):
        try:
            make()
        except ValueError as error:
            said.append(str(error))
    return said


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_that_are_not_sharded_in_that_way_are_refused(tmp_path):
    for plain, averaged, many, weights, audit, all_, shards, steps in on_ranks(
        REPLICAS * SHARDS, misused, tmp_path
    ):
        assert plain.startswith("model: should have fully_shard applied to it. Found Linear.")
        assert "should be sharded on a mesh of one dimension" in averaged
        assert "a mesh of 2 dimensions" in averaged
        assert "no guarantee for 3 ranks of which 2 may be faulty" in many
        assert weights.startswith("weights: should be one for each of 3 ranks.")
        assert audit.startswith("audit: should be 0 with fully sharded models. Found 0.1:")
        assert all_.startswith("replicas: should be a mesh of one dimension")
        assert shards.startswith(
            "replicas: should be ranks that hold the same shard of different replicas."
        )
        assert "optimizer that steps in the backward pass" in steps
