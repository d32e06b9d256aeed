"""The vectors of all workers at once are those of each, but for rounding."""

import dataclasses
import sys

import pytest
import torch
from tests import own_parts

from varangian.aggregators import Aggregator, Krum
from varangian.config.worker_names import default_names
from varangian.server.training.optimizers import Sgd
from varangian.server.training.schedules import Cosine
from varangian.worker.attacks import ATTACKS, Alie, Ipm, LabelFlip, SignFlip
from varangian.worker.data import Custom as CustomData
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Dirichlet, Iid, Shared
from varangian.worker.simulation.availability import Alternating, Random
from varangian.worker.training.batched.compute import BatchedCompute, CannotBatch
from varangian.worker.training.batched.pooled import Pooled, UnknownLayer
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.losses import LOSSES
from varangian.worker.training.models import Cnn, Custom, Mlp, ResNet18, Softmax
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

WORKERS = default_names(6)
BYZANTINE = WORKERS[-2:]
TASK = Task(
    seed=1,
    workers=WORKERS,
    model=Mlp(hidden=8),
    data=Synthetic(features=6, train=140, test=50),
    partition=Dirichlet(),
    f=2,
    batch_size=8,
)
MINE = """
import torch
from torch import nn

def norms(features, classes):
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, classes))

def drops(features, classes):
    one, two = nn.Dropout(0.3), nn.Dropout(0.5)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), one, nn.Linear(8, 8), two, nn.Linear(8, classes))

class Dropping(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x))

def dropping(features, classes):
    return Dropping(6, classes)

class Scale(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.scale, self.left = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, classes)
        self.fixed = nn.Parameter(torch.ones(6), requires_grad=False)
        self.c = self.a
    def forward(self, x):
        x += 1
        return self.b(self.scale * self.c(self.a(x)).relu() + self.fixed)

def scale(features, classes):
    return Scale(classes)

def batch_norm(features, classes):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, classes))

class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)

def branch(features, classes):
    return Branch(6, classes)

class Noise(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))

def noise(features, classes):
    return Noise(6, classes)

class Attention(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.table.weight
    def forward(self, ids, scale):
        return self.head(self.inner(self.table(ids)) * scale[:, None])

def attention(features, classes, tied=False):
    return Attention(tied)

def squared(outputs, targets):
    return ((outputs.squeeze(1) - targets) ** 2).mean()

def tokens():
    ids = torch.arange(180).view(36, 5) * 7 % 12
    x = {"ids": ids, "scale": torch.ones(36, 1)}
    return x, (ids + 1) % 12, x, (ids + 1) % 12

def prices():
    x = torch.arange(240.0).view(60, 4) / 240
    return x, x.sum(1), x, x.sum(1)
"""


@pytest.fixture(autouse=True)
def mine(monkeypatch, tmp_path):
    (tmp_path / "batched_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "batched_parts", raising=False)


def but(**changes):
    return dataclasses.replace(TASK, **changes)


def attacked(attack, **changes):
    return but(byzantine=BYZANTINE, attack=attack, **changes)


def own(name, **options):
    return Custom(f"batched_parts:{name}", options)


def images(features):
    return Synthetic(features=features, train=140, test=50)


def walk(exact, rounds):
    """Parameters of a few rounds."""
    found = [exact.initial()]
    for round in range(rounds - 1):
        rows = exact.vectors(WORKERS, round, found[-1]).values()
        found.append(
            found[-1] - torch.stack([row for row in rows if isinstance(row, torch.Tensor)][:3]).mean(dim=0)
        )
    return found


def check_agreement(task, rounds=3, asked=lambda round: WORKERS):
    """Compare what both compute and say, in rounds in which some workers are asked."""
    parameters = walk(WorkerCompute(dataclasses.replace(task, byzantine=(), attack=None)), rounds)
    exact, batched = WorkerCompute(task), BatchedCompute(WorkerCompute(task))
    for round, vector in enumerate(parameters):
        names = asked(round)
        expected, found = (source.vectors(names, round, vector) for source in (exact, batched))
        assert [*expected] == [*found] == [*names]
        for name in names:
            if isinstance(expected[name], torch.Tensor):
                close(found[name], expected[name])
            else:
                assert str(found[name]) == str(expected[name])
        for source in (exact, batched):
            for name in names[::2]:
                source.confirm(name, round)


def close(found, expected):
    assert found.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    found, expected = found[finite], expected[finite]
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.whole
@pytest.mark.parametrize(
    "task",
    [
        but(model=Softmax()),
        but(model=Mlp(hidden=(8, 5)), momentum=0.0),
        but(model=Cnn(width=2), data=images((1, 8, 8))),
        but(model=ResNet18(width=4, groups=2, norm="batch"), data=images((3, 8, 8))),
        but(model=own("norms")),
        but(model=own("drops")),
        but(model=own("scale")),
        but(model=own("batch_norm"), partition=Iid()),
        but(model=own("attention"), data=CustomData("batched_parts:tokens"), partition=Iid()),
        but(model=own("attention", tied=True), data=CustomData("batched_parts:tokens"), partition=Shared()),
        but(
            model=Softmax(),
            data=CustomData("batched_parts:prices"),
            partition=Iid(),
            loss=LOSSES.build({"custom": {"target": "batched_parts:squared"}}, "loss"),
        ),
        but(
            model=Softmax(),
            data=CustomData("batched_parts:prices"),
            partition=Iid(),
            loss=LOSSES.build("l1", ""),
        ),
    ],
    ids=lambda task: f"{task.model}-{task.loss}",
)
def test_models_and_losses(task):
    check_agreement(task)


@pytest.mark.parametrize("name", [*ATTACKS])
@pytest.mark.parametrize("knows", [None, "all"])
def test_attacks(name, knows):
    check_agreement(attacked(ATTACKS.build(name, ""), knows=knows))


@dataclasses.dataclass(frozen=True)
class Drifting(own_parts.Drifting):
    """As the user's, but as one of ours: attackers of a process share its memory."""

    __module__ = "varangian.test"


@pytest.mark.parametrize("attack", [Drifting(silent=3), own_parts.Drifting(silent=3)], ids=["ours", "own"])
@pytest.mark.parametrize(
    "changes", [{}, {"availability": Alternating(period=4)}, {"deltas": True}], ids=str
)
def test_attacks_that_remember(attack, changes):
    check_agreement(attacked(attack, aggregator=Aggregator(Krum(f=1)), **changes), rounds=9)


@pytest.mark.parametrize("model", [Mlp(hidden=8), own("scale")], ids=str)
@pytest.mark.parametrize("attack", [Alie(), LabelFlip()], ids=str)
def test_local_steps(model, attack):
    steps = {"local_steps": 3, "local_rates": Sgd(lr=0.5, schedule=Cosine()), "rounds": 5}
    check_agreement(attacked(attack, model=model, **steps))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_deltas_of_some_workers(momentum):
    task = attacked(SignFlip(), deltas=True, momentum=momentum)
    check_agreement(task, rounds=6, asked=lambda round: WORKERS[round % 2 :: 2])


@pytest.mark.parametrize("attack", [Ipm(), Alie(), SignFlip()], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_workers_that_are_asked_apart(attack, momentum):
    """Those who are only seen by attackers compute as well, and nobody twice."""
    parts = (WORKERS[4:], WORKERS[:2], WORKERS[2:])
    check_agreement(attacked(attack, momentum=momentum), rounds=6, asked=lambda round: parts[round % 3])


@pytest.mark.parametrize("availability", [Alternating(period=4), Random(chance=0.5)], ids=str)
def test_workers_that_are_away(availability):
    check_agreement(attacked(Ipm(), availability=availability), rounds=5)


def test_the_same_round_again_gives_the_same_bits():
    task = attacked(Ipm())
    batched = BatchedCompute(WorkerCompute(task))
    parameters = WorkerCompute(task).initial()
    once = {name: row.clone() for name, row in batched.vectors(WORKERS, 0, parameters).items()}
    for name in reversed(WORKERS):
        assert torch.equal(batched.vectors([name], 0, parameters)[name], once[name])
    batched.vectors(WORKERS, 1, parameters)
    with pytest.raises(ValueError, match="should not go back"):
        batched.vectors(WORKERS, 0, parameters)


def test_vectors_on_their_way_stay_what_they_are():
    """An attacker that looks at a worker again does not change what that worker has sent."""
    task = attacked(Ipm(), momentum=0.0)
    batched = BatchedCompute(WorkerCompute(task))
    parameters = WorkerCompute(task).initial()
    sent = batched.vectors(WORKERS[:1], 0, parameters)[WORKERS[0]]
    before = sent.clone()
    batched.vectors(BYZANTINE, 1, parameters + 1)
    assert torch.equal(sent, before)


@pytest.mark.parametrize("most", [1, 20])
def test_memory_bounds_how_many_compute_at_once(monkeypatch, most):
    monkeypatch.setattr("varangian.worker.training.batched.compute.AT_ONCE", most)
    check_agreement(attacked(Alie(), partition=Shared()))


def test_who_cannot_compute_declines_alone():
    class Dealt(Shared):
        by_label = False

        def split(self, labels, workers, seed):
            return [part.clone() for part in labels.new_tensor(range(27)).long().split((1, 9, 5, 9, 1, 2))]

    task = but(model=own("batch_norm"), partition=Dealt())
    check_agreement(task)
    batched = BatchedCompute(WorkerCompute(task))
    found = batched.vectors(WORKERS, 0, WorkerCompute(task).initial())
    refused = [name for name, row in found.items() if not isinstance(row, torch.Tensor)]
    assert refused == ["w00", "w04"]


def test_who_diverges_declines_and_keeps_its_momentum():
    exact, batched = WorkerCompute(TASK), BatchedCompute(WorkerCompute(TASK))
    parameters = exact.initial()
    for round, vector in enumerate((parameters, parameters * torch.inf, parameters)):
        expected, found = (source.vectors(WORKERS, round, vector) for source in (exact, batched))
        for name in WORKERS:
            if round == 1:
                assert str(found[name]) == str(expected[name])
                assert "has diverged" in str(found[name])
            else:
                close(found[name], expected[name])


@pytest.mark.parametrize(("name", "why"), [("branch", "data-dependent control flow"), ("noise", "random")])
def test_models_that_cannot_compute_together(name, why):
    with pytest.raises(CannotBatch, match=why) as found:
        BatchedCompute(WorkerCompute(but(model=own(name))))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("model", "features"),
    [
        (Mlp(hidden=8), (6,)),
        (Cnn(width=2), (1, 8, 8)),
        (ResNet18(width=4, groups=2), (3, 8, 8)),
        (own("norms"), (6,)),
    ],
    ids=str,
)
def test_samples_of_all_workers_can_be_one_batch(model, features):
    """Also where a CPU is faster with one worker after the other."""
    task = but(model=model, data=images(features), partition=Shared(), momentum=0.0)
    exact = WorkerCompute(task)
    parameters = exact.initial()
    expected = torch.stack([*exact.vectors(WORKERS, 0, parameters).values()])
    x, y = exact.trainer.batch(exact.batches.stacked(WORKERS, 0).flatten())
    x, y = (part.unflatten(0, (len(WORKERS), -1)) for part in (x, y))
    rows = torch.full_like(expected, torch.nan)
    pooled = Pooled(exact.trainer, exact.trainer.train(), task.seed)
    pooled(parameters, x, y, [(name, 0) for name in WORKERS], rows)
    for found, one in zip(rows, expected, strict=True):
        close(found, one)


def test_layers_that_look_at_other_samples_are_not_pooled():
    for model in (own("batch_norm"), own("scale"), own("branch")):
        exact = WorkerCompute(but(model=model, partition=Shared()))
        with pytest.raises(UnknownLayer):
            Pooled(exact.trainer, exact.trainer.train(), 1)


@pytest.mark.parametrize("attack", [Alie(), Ipm(), SignFlip(), LabelFlip()], ids=str)
def test_no_vector_comes_to_the_host(monkeypatch, attack):
    """As far as can be seen without a GPU: what would copy from one is called for few numbers only."""
    task = attacked(attack, local_steps=2)
    batched = BatchedCompute(WorkerCompute(task))
    parameters = WorkerCompute(task).initial()
    for name in ("cpu", "numpy", "tolist", "item", "__float__", "__bool__"):
        plain = getattr(torch.Tensor, name)

        def few(tensor, *args, plain=plain):
            assert tensor.numel() < parameters.numel()
            return plain(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, few)
    batched.vectors(WORKERS, 0, parameters)


def test_random_numbers_that_cannot_be_matched_are_a_reason():
    with pytest.raises(CannotBatch, match="random"):
        BatchedCompute(WorkerCompute(but(model=own("dropping"))))
