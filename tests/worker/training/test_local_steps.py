"""Several steps of a worker by itself, and what it says of them."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from varangian.config.worker_names import default_names
from varangian.protos.payloads.encoding import Encoding, rounding_seed
from varangian.worker.attacks import ATTACKS, SignFlip
from varangian.worker.data import Synthetic
from varangian.worker.data.batches import BatchSampler
from varangian.worker.data.partition import Iid
from varangian.worker.seeds import globally_seeded, stream_seed
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.flat import load
from varangian.worker.training.models import Mlp
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

TASK = Task(
    seed=1,
    workers=default_names(4),
    model=Mlp(hidden=8),
    data=Synthetic(features=6, train=80, test=50),
    partition=Iid(),
    batch_size=8,
    momentum=0.0,
)


def but(**changes):
    return dataclasses.replace(TASK, **changes)


def first(**changes):
    worker_compute = WorkerCompute(but(**changes))
    return worker_compute.contribution("w01", 3, worker_compute.initial())


def gradient(worker_compute, seed, parameters):
    """Of one batch of w01 in round 3, by the definition."""
    data, task = worker_compute.dataset, worker_compute.task
    shard = task.partition.split(data.train_y, 4, task.seed)[1]
    indices = BatchSampler({"w01": shard}, task.batch_size, seed).indices("w01", 3)
    with globally_seeded(0, device=torch.device("cpu")):
        module = task.model.build(data.features, data.classes)
    load(module, parameters)
    cross_entropy(module(data.train_x[indices]), data.train_y[indices]).backward()
    return nn.utils.parameters_to_vector([p.grad for p in module.parameters()])


def test_what_is_sent_is_the_way_walked_over_the_learning_rate():
    worker_compute = WorkerCompute(but(local_steps=3, local_lr=0.25))
    x = y = worker_compute.initial()
    for seed in (1, stream_seed(1, "step", 1), stream_seed(1, "step", 2)):
        y = y - 0.25 * gradient(worker_compute, seed, y)
    sent = worker_compute.contribution("w01", 3, x)
    assert torch.allclose(sent, (x - y) / 0.25, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(sent, 3 * gradient(worker_compute, 1, x), rtol=1e-2)


def test_one_step_sends_the_gradient_to_the_bit():
    assert torch.equal(first(), first(local_steps=1, local_lr=0.01))
    assert not torch.equal(first(local_steps=2, local_lr=0.01), first(local_steps=2, local_lr=0.1))


def test_momentum_is_of_what_all_steps_made():
    plain, damped = first(local_steps=2), first(local_steps=2, momentum=0.75)
    assert torch.allclose(damped, 0.25 * plain)


def test_the_vector_is_the_same_in_every_process_and_when_asked_again():
    task = but(local_steps=3, local_lr=0.1)
    worker_compute, alone = WorkerCompute(task), WorkerCompute(task)
    x = worker_compute.initial()
    everybody = {name: worker_compute.contribution(name, 0, x) for name in TASK.workers}
    assert torch.equal(alone.contribution("w03", 0, x), everybody["w03"])
    assert torch.equal(worker_compute.contribution("w03", 0, x), everybody["w03"])
    assert torch.equal(worker_compute.initial(), x)


@dataclasses.dataclass(frozen=True)
class Dropout:
    def build(self, features, classes):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(features[0], classes, bias=False))


def test_dropout_is_another_in_every_step():
    """With the whole shard as a batch and steps that go nowhere, only dropout makes a difference."""
    still = {"model": Dropout(), "batch_size": 20, "local_lr": 1e-30}
    one, two = first(**still), first(**still, local_steps=2)
    assert not torch.allclose(two, 2 * one, rtol=1e-2)


class Poison:
    """Remembers what it drew."""

    def __init__(self):
        self.drawn = []

    def poisons(self, x, y, classes, rng):
        self.drawn.append(int(torch.randint(1 << 30, (1,), generator=rng)))
        return x, y


def test_every_batch_of_an_attacker_is_poisoned():
    poison = Poison()
    first(local_steps=3, byzantine=("w01", "w02"), attack=poison, f=2)
    assert len(set(poison.drawn)) == 3


def test_an_attack_changes_what_all_steps_made():
    flipped = first(local_steps=2, byzantine=("w01", "w02"), attack=SignFlip(), f=2)
    scale = ATTACKS.build("sign_flip", "").scale
    assert torch.allclose(flipped, -scale * first(local_steps=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"local_steps": 0}, "`local_steps` should be at least 1. Found 0"),
        ({"local_lr": 0.0}, "`local_lr` should be a positive number. Found 0.0"),
        ({"local_lr": float("inf")}, "`local_lr` should be a positive number. Found inf"),
    ],
)
def test_steps_that_make_no_sense(change, said):
    with pytest.raises(ValueError, match=said):
        but(**change)


def test_without_momentum_another_may_be_asked_for_an_older_round():
    """Attackers who look at others ask for their vectors at models of their own."""
    worker_compute = WorkerCompute(but(local_steps=2))
    x = worker_compute.initial()
    old = worker_compute.contribution("w00", 2, x)
    worker_compute.contribution("w00", 5, x)
    assert torch.equal(worker_compute.contribution("w00", 2, x), old)
    held = WorkerCompute(but(momentum=0.5))
    held.contribution("w00", 5, x)
    with pytest.raises(ValueError, match="should not go back"):
        held.contribution("w00", 2, x)


def test_a_crew_sends_what_is_new_since_its_last_vector_that_counted():
    plain, worker_compute = WorkerCompute(TASK), WorkerCompute(but(deltas=True))
    x = worker_compute.initial()
    vectors = [plain.contribution("w00", round, x) for round in range(3)]
    assert torch.equal(worker_compute.contribution("w00", 0, x), vectors[0])
    worker_compute.confirm("w00", 0)
    lost = worker_compute.contribution("w00", 1, x)
    assert torch.equal(lost, vectors[1] - vectors[0])
    assert torch.equal(worker_compute.contribution("w00", 1, x), lost)  # a retry sends the same
    assert torch.allclose(worker_compute.contribution("w00", 2, x), vectors[2] - vectors[0], atol=1e-7)
    assert torch.equal(worker_compute.contribution("w01", 0, x), plain.contribution("w01", 0, x))


def test_the_same_delta_is_sent_again_also_after_it_counted():
    deltas = DeltaEncoder()
    deltas.encode("w00", 0, torch.tensor([1.0]))
    deltas.confirm("w00", 0)
    deltas.confirm("w00", 0)
    assert deltas.encode("w00", 0, torch.tensor([1.0])).tolist() == [1.0]
    deltas.confirm("w00", 7)
    assert deltas.encode("w00", 1, torch.tensor([3.0])).tolist() == [2.0]


@pytest.mark.parametrize(("wire", "bound"), [("float32", 1e-7), ("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_what_is_rounded_away_comes_with_the_next_delta(wire, bound):
    """The sum of what was received is as near to the last vector as the rounding of one delta."""
    deltas, kept, encoding = DeltaEncoder(wire), torch.zeros(2, dtype=torch.float64), Encoding(2, wire)
    values = torch.rand(2000, 2, generator=torch.Generator().manual_seed(3))
    for round, value in enumerate(values):
        sent = deltas.encode("w00", round, value)
        kept += encoding.decode(encoding.encode(sent, rounding_seed("w00", round)))
        if round % 7 == 3:
            again = DeltaEncoder(wire)
            again.restore("w00", deltas.state("w00"))
            deltas = again
        deltas.confirm("w00", round)
    assert (kept - values[-1]).abs().max() <= bound
