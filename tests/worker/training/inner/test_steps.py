"""Local steps with an inner optimizer, and what it remembers."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from varangian.config.worker_names import default_names
from varangian.protos.layout import Fragments
from varangian.protos.payloads.encoding import put, take
from varangian.server.training.optimizers import OPTIMIZERS
from varangian.worker.attacks import SignFlip
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Iid
from varangian.worker.seeds import globally_seeded
from varangian.worker.training.batched.compute import BatchedCompute, CannotBatch
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.flat import DivergedError, load
from varangian.worker.training.inner.steps import InnerSteps
from varangian.worker.training.models import Mlp
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

ADAMW = OPTIMIZERS.build({"adamw": {"lr": 0.05}}, "")
TASK = Task(
    seed=1,
    workers=default_names(4),
    model=Mlp(hidden=8),
    data=Synthetic(features=6, train=80, test=50),
    partition=Iid(),
    batch_size=8,
    momentum=0.0,
    local_steps=3,
    rounds=4,
    inner=ADAMW,
)


def but(**changes):
    return dataclasses.replace(TASK, **changes)


def by_hand(task, models, make, rates=None, name="w01"):
    """Pseudo-gradients of a worker: a plain loop of torch over the same batches, with one optimizer."""
    worker_compute = WorkerCompute(task)
    data = worker_compute.dataset
    with globally_seeded(0, device=torch.device("cpu")):
        module = task.model.build(data.features, data.classes)
    optimizer, found = make([*module.parameters()]), []
    for round, model in enumerate(models):
        load(module, model)
        for step in range(task.local_steps):
            if rates is not None:
                optimizer.param_groups[0]["lr"] = rates[round * task.local_steps + step]
            x, y = worker_compute.trainer.batch(worker_compute.batches.indices(name, round, step))
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
        found.append(model - nn.utils.parameters_to_vector(module.parameters()).detach())
    return found


def models(rounds=3):
    initial = WorkerCompute(TASK).initial()
    return [initial * (1 + 0.1 * round) for round in range(rounds)]


def sent(task, models, name="w01"):
    worker_compute = WorkerCompute(task)
    return [worker_compute.contribution(name, round, model) for round, model in enumerate(models)]


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        ({"adamw": {"lr": 0.05}}, lambda ps: torch.optim.AdamW(ps, 0.05)),
        ({"sgd": {"lr": 0.1, "momentum": 0.9}}, lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9)),
        ({"adagrad": {"lr": 0.05}}, lambda ps: torch.optim.Adagrad(ps, 0.05)),
    ],
    ids=["adamw", "sgd", "adagrad"],
)
def test_a_worker_takes_the_steps_of_torch_with_one_optimizer_over_all_rounds(spec, make):
    task = but(inner=OPTIMIZERS.build(spec, ""))
    for vector, expected in zip(sent(task, models()), by_hand(task, models(), make), strict=True):
        assert torch.allclose(vector, expected, rtol=1e-4, atol=1e-6)


def test_its_schedule_goes_by_local_steps():
    spec = {"sgd": {"lr": 0.2, "schedule": {"linear": {}}, "warmup": 4}}
    rates = [0.05, 0.1, 0.15, 0.2] + [0.2 * (1 - t / 8) for t in range(8)]
    task = but(inner=OPTIMIZERS.build(spec, ""))
    expected = by_hand(task, models(), lambda ps: torch.optim.SGD(ps, 0.2), rates)
    for vector, one in zip(sent(task, models()), expected, strict=True):
        assert torch.allclose(vector, one, rtol=1e-4, atol=1e-6)


def test_a_round_that_is_asked_for_again_has_the_same_bits_and_moves_nothing():
    worker_compute, model = WorkerCompute(TASK), models(1)[0]
    first = worker_compute.contribution("w01", 0, model)
    assert torch.equal(worker_compute.contribution("w01", 0, model), first)
    others = WorkerCompute(TASK)
    for name in TASK.workers:
        others.contribution(name, 0, model)
    second = worker_compute.contribution("w01", 1, model)
    assert torch.equal(others.contribution("w01", 1, model), second)
    assert not torch.allclose(second, WorkerCompute(TASK).contribution("w01", 1, model), rtol=1e-2)
    with pytest.raises(ValueError, match="should not go back"):
        worker_compute.contribution("w01", 0, model)


def test_a_simulation_that_asks_for_all_workers_at_once_has_the_same_bits():
    """There the parameters of a model are set once, as long as they are the same."""
    one, all_at_once = WorkerCompute(TASK), WorkerCompute(TASK)
    for round, model in enumerate(models()):
        found = all_at_once.vectors(TASK.workers, round, model)
        for name in TASK.workers:
            assert torch.equal(found[name], one.contribution(name, round, model))


def test_an_attacker_turns_what_its_own_inner_steps_made():
    attacked = but(byzantine=("w01", "w02"), attack=SignFlip(scale=2.0), f=2)
    for vector, own in zip(sent(attacked, models()), sent(TASK, models()), strict=True):
        assert torch.allclose(vector, -2 * own)


def test_momentum_is_over_pseudo_gradients():
    first, second = sent(but(momentum=0.5), models(2))
    plain = sent(TASK, models(2))
    assert torch.allclose(second, 0.5 * first + 0.5 * plain[1])


def test_with_fragments_a_worker_goes_on_from_its_own_parameters_in_the_others():
    """Against a plain loop: only the fragments of the rounds since the last one are the server's."""
    task, models_of = but(fragments=2, rounds=8), models(6)
    worker_compute = WorkerCompute(task)
    split = Fragments(worker_compute.layout, 2)
    data = worker_compute.dataset
    with globally_seeded(0, device=torch.device("cpu")):
        module = task.model.build(data.features, data.classes)
    optimizer, own, before = torch.optim.AdamW(module.parameters(), 0.05), models_of[0].clone(), 0
    for round in (0, 1, 2, 5):  # away in rounds 3 and 4
        for fragment in split.changed(before, round):
            put(own, split.slices[fragment], take(models_of[round], split.slices[fragment]))
        load(module, own)
        for step in range(task.local_steps):
            x, y = worker_compute.trainer.batch(worker_compute.batches.indices("w01", round, step))
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
        own, before = nn.utils.parameters_to_vector(module.parameters()).detach().clone(), round
        sent = worker_compute.contribution("w01", round, models_of[round])
        assert torch.allclose(sent, models_of[round] - own, rtol=1e-4, atol=1e-6)


def test_a_round_that_fails_leaves_the_optimizer_as_it_was():
    steps, start = InnerSteps(ADAMW, 2, 4), torch.zeros(3)

    def good(row, step, point):
        row.copy_(point + 1 + step)

    def bad(row, step, point):
        row.fill_(float("nan") if step else 1.0)

    def fails(row, step, point):
        raise RuntimeError("mine")

    steps("w00", 0, start, good)
    before = {key: value.clone() for key, value in steps.state("w00")["state"].items()}
    with pytest.raises(DivergedError):
        steps("w00", 1, start, bad)
    with pytest.raises(RuntimeError, match="mine"):
        steps("w00", 1, start, fails)
    after = steps.state("w00")
    assert after["round"] == 0
    assert all(torch.equal(value, after["state"][key]) for key, value in before.items())


def test_gradients_whose_squares_overflow_are_not_remembered():
    """The moments would be infinite for ever, and every later step 0."""
    steps = InnerSteps(ADAMW, 1, 4)
    with pytest.raises(DivergedError):
        steps("w00", 0, torch.zeros(3), lambda row, step, point: row.fill_(1e30))
    assert steps.state("w00") is None


def test_workers_with_optimizers_of_their_own_compute_one_by_one():
    with pytest.raises(CannotBatch, match="an optimizer of its own"):
        BatchedCompute(WorkerCompute(TASK))
