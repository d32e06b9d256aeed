"""Models, losses and metrics of the user's: what works, and what is said of what does not."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from varangian import plugins
from varangian.plugins import InputError, guard, resolve
from varangian.server.training.optimizers import Sgd
from varangian.server.training.schedules import Cosine
from varangian.worker.attacks import Alie, LabelFlip
from varangian.worker.data import Custom as CustomData
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Dirichlet, Shared
from varangian.worker.training import trainer
from varangian.worker.training.compute import WorkerCompute, rehearse
from varangian.worker.training.losses import LOSSES, CrossEntropy, MeanSquaredError
from varangian.worker.training.metrics import METRICS
from varangian.worker.training.models import Custom, Mlp, Softmax
from varangian.worker.training.task import Task
from varangian.worker.transport.results import Declined

pytestmark = pytest.mark.usefixtures("untouched_generator")

MINE = """
import sys, torch
from torch import nn

def lazy(features, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Dropout(0.5), nn.LazyLinear(classes))

class Unused(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.used, self.left = nn.Linear(6, classes), nn.LazyLinear(2)
    def forward(self, x):
        return self.used(x)

def unused(features, classes):
    return Unused(classes)

def batch_norm(features, classes):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, classes))

class Picky(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(6, classes)
    def forward(self, x):
        if x.shape[0] > 2 and bool((x > 1e3).any()):
            raise RuntimeError("too large\\nfor me")
        return self.head(x)

def picky(features, classes):
    return Picky(classes)

def bag(features, classes):
    return nn.Sequential(nn.EmbeddingBag(12, 4, sparse=True), nn.Linear(4, classes))

class Next(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.table = nn.Embedding(12, 12)
    def forward(self, ids, scale):
        return self.table(ids) * scale[:, None]

def next_token(features, classes):
    assert features == {"ids": (5,), "scale": (1,)}, features
    return Next(classes)

class Odd(nn.Module):
    def __init__(self, classes, odd):
        super().__init__()
        self.odd, self.a, self.b = odd, nn.Linear(6, 6), nn.Linear(6, classes)
        if odd == "shared":
            self.c = nn.Linear(6, 6)
            self.c.weight.data = self.a.weight.data
        if odd == "expanded":
            self.d = nn.Parameter(torch.zeros(1, 3).expand(4, 3))
    def forward(self, x):
        if self.odd == "grows" and not hasattr(self, "e"):
            self.e = nn.Linear(2, 2)
        if self.odd == "rebinds":
            self.a.weight = nn.Parameter(self.a.weight.detach().clone())
        if self.odd == "writes":
            x += 1
        y = self.b(self.a(x))
        return {"scores": y, "pair": (y, 3)} if self.odd == "several" else y

def odd(features, classes, odd):
    return Odd(classes, odd)

def of_several(outputs, targets):
    return nn.functional.cross_entropy(outputs["scores"], targets)

def places(outputs, targets):
    return len(outputs["pair"][0]) + outputs["pair"][1]

def too_few(features):
    return nn.Linear(6, 4)

def leaves(features, classes):
    sys.exit(3)

def detached(outputs, targets):
    return torch.tensor(1.0)

def rows(outputs, targets):
    return (outputs - targets[:, None]) ** 2

def squared(outputs, targets, power=2):
    return ((outputs.squeeze(1) - targets).abs() ** power).mean()

def largest(outputs, targets):
    assert len(outputs) == len(targets)
    return (outputs.squeeze(1) - targets).abs().max()

def fails(outputs, targets):
    return 1 / 0

def tokens():
    ids = torch.arange(60).view(12, 5) % 12
    x = {"ids": ids, "scale": torch.ones(12, 1)}
    return x, (ids + 1) % 12, x, (ids + 1) % 12

def words():
    x = torch.arange(60).view(12, 5) % 12
    return x, x[:, 0] % 2, x, x[:, 0] % 2

def prices():
    x = torch.arange(60.0).view(15, 4) / 60
    return x, x.sum(1), x, x.sum(1)

def one_huge():
    x, y = torch.ones(12, 6), torch.arange(12) % 2
    x[7:] = 1e4
    return x, y, x[:6], y[:6]
"""


@pytest.fixture(autouse=True)
def mine(monkeypatch, tmp_path):
    (tmp_path / "user_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_parts", raising=False)


TASK = Task(
    seed=1,
    workers=("a", "b", "c"),
    model=Mlp(hidden=8),
    data=Synthetic(features=6, train=140, test=50),
    partition=Shared(),
    batch_size=8,
)


def but(**changes):
    return dataclasses.replace(TASK, **changes)


def model(name):
    return Custom(f"user_parts:{name}")


def data(name):
    return CustomData(f"user_parts:{name}")


def loss(name):
    return LOSSES.build({"custom": {"target": f"user_parts:{name}"}}, "loss")


def metric(name):
    return METRICS.build({"custom": {"target": f"user_parts:{name}"}}, "metrics")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"model": model("too_few")}, r"`model` 'user_parts:too_few' is called with \(features, classes\)"),
        ({"model": model("leaves")}, r"user_parts:leaves' failed: it called sys.exit\(3\)"),
        ({"model": model("unused")}, r"user_parts:unused: lazy layers.*left"),
        (
            {"model": model("bag")},
            r"`model` user_parts:bag with a batch of 2 samples of shape \[6\] failed",
        ),
        ({"data": data("prices")}, r"user_parts:prices.*whole numbers as class labels"),
        (
            {"data": data("prices"), "loss": loss("detached")},
            "gradient of `loss` user_parts:detached failed",
        ),
        ({"data": data("prices"), "loss": loss("rows")}, r"user_parts:rows' should return one number"),
        ({"data": data("prices"), "loss": loss("no_such")}, "user_parts has no 'no_such'"),
        (
            {"data": data("prices"), "loss": MeanSquaredError(), "metrics": (metric("fails"),)},
            r"user_parts:fails' failed: ZeroDivisionError.*line \d+",
        ),
        (
            {"data": data("prices"), "loss": MeanSquaredError(), "partition": Dirichlet()},
            "dirichlet deals samples by their class",
        ),
        ({"data": data("words"), "metrics": (METRICS.build("mae", ""),)}, "mae needs numbers as targets"),
        (
            {"data": data("prices"), "loss": loss("squared"), "byzantine": ("c",), "attack": LabelFlip()},
            "needs class labels",
        ),
        ({"device": "mps"}, "`worker.device` should be one of this machine. Found 'mps'"),
        ({"device": "cuda:99"}, "`worker.device` should be one of this machine. Found 'cuda:99'"),
        ({"device": "meta"}, "`worker.device` should be one of this machine. Found 'meta'"),
    ],
)
def test_what_does_not_work_is_one_sentence_before_the_run(task, words):
    with pytest.raises(InputError, match=words) as found:
        rehearse(but(**task))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shared", "'a.weight' and 'c.weight' should not share memory"),
        ("expanded", "Found 'd' expanded"),
        ("grows", "should keep its parameters"),
        ("rebinds", "should keep its parameters"),
        ("several", r"Found \{'scores': \[2, 4\], 'pair': \(\[2, 4\], int\)\}.*Return the scores alone"),
    ],
)
def test_models_that_would_train_otherwise_than_meant(kind, words):
    with pytest.raises(InputError, match=words):
        rehearse(but(model=Custom("user_parts:odd", {"odd": kind})))


def test_a_model_that_gives_several_things_goes_with_a_loss_of_its_own(monkeypatch):
    task = but(model=Custom("user_parts:odd", {"odd": "several"}), loss=loss("of_several"))
    assert WorkerCompute(task).metrics == {}
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 20)
    worker_compute = WorkerCompute(dataclasses.replace(task, metrics=(metric("places"),)))
    assert worker_compute.evaluate(worker_compute.initial())["places"] == 53


def test_a_model_that_writes_to_its_inputs_changes_no_data():
    worker_compute = WorkerCompute(but(model=Custom("user_parts:odd", {"odd": "writes"})))
    before = worker_compute.dataset.test_x.clone()
    first = worker_compute.evaluate(worker_compute.initial())
    assert worker_compute.evaluate(worker_compute.initial()) == first
    assert torch.equal(worker_compute.dataset.test_x, before)


def test_metrics_have_names_of_their_own():
    for name in ("lr", "ema_loss", " "):
        with pytest.raises(InputError, match="`metrics`"):
            WorkerCompute(
                but(
                    metrics=(METRICS.build({"custom": {"target": "user_parts:largest", "name": name}}, ""),)
                )
            )


def test_lazy_layers_begin_with_the_same_bits_everywhere():
    first, second = (WorkerCompute(but(model=model("lazy"))) for _ in range(2))
    assert torch.equal(first.initial(), second.initial())
    assert len(first.initial()) == 6 * 5 + 5 + 5 * 4 + 4
    assert torch.equal(
        first.contribution("a", 0, first.initial()), second.contribution("a", 0, second.initial())
    )


def test_sparse_gradients_are_made_dense():
    worker_compute = WorkerCompute(but(model=model("bag"), data=data("words")))
    assert worker_compute.contribution("a", 0, worker_compute.initial()).shape == (12 * 4 + 4 * 2 + 2,)


def test_a_model_of_tokens_with_several_inputs():
    worker_compute = WorkerCompute(but(model=model("next_token"), data=data("tokens"), momentum=0.0))
    parameters = worker_compute.initial()
    before = worker_compute.evaluate(parameters)
    for round in range(60):
        parameters -= 5 * worker_compute.contribution("a", round, parameters)
    after = worker_compute.evaluate(parameters)
    assert before["accuracy"] < 0.5 < after["accuracy"] == 1
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize("chosen", [MeanSquaredError(), None])
def test_regression_with_metrics_of_its_own(chosen):
    metrics = (METRICS.build("mae", ""), metric("largest"))
    worker_compute = WorkerCompute(
        but(model=Softmax(), data=data("prices"), loss=chosen or loss("squared"), metrics=metrics)
    )
    found = worker_compute.evaluate(worker_compute.initial())
    assert [*found] == ["loss", "mae", "largest"]
    assert 0 < found["mae"] <= found["largest"]
    assert found["loss"] <= found["largest"] ** 2
    assert [
        *WorkerCompute(but(model=Softmax(), data=data("prices"), loss=MeanSquaredError())).metrics
    ] == []


@dataclasses.dataclass(frozen=True)
class Dealt:
    """A partition by hand: the first samples of each worker."""

    sizes: tuple[int, ...]
    first: tuple[int, ...] = (0, 0, 0)

    def split(self, labels, workers, seed):
        return [torch.arange(at, at + size) for at, size in zip(self.first, self.sizes, strict=True)]


HUGE_FOR_B = Dealt((7, 5, 3), (0, 7, 0))


def test_a_batch_that_the_model_cannot_take_is_declined_by_its_worker_alone():
    worker_compute = WorkerCompute(but(model=model("picky"), data=data("one_huge"), partition=HUGE_FOR_B))
    with pytest.raises(Declined) as found:
        worker_compute.answer("b", 0, worker_compute.initial())
    said = (
        "user_parts:picky with a batch of 5 samples of shape [6] failed: RuntimeError: too large for me ("
    )
    assert said in found.value.reason
    assert worker_compute.answer("a", 0, worker_compute.initial()) is not None
    assert worker_compute.answer("c", 0, worker_compute.initial()) is not None


def test_an_attacker_sees_only_those_who_can_compute():
    attacked = {"byzantine": ("c",), "attack": Alie(z=1.0), "knows": "all", "partition": HUGE_FOR_B}
    worker_compute = WorkerCompute(but(model=model("picky"), data=data("one_huge"), **attacked))
    assert worker_compute.answer("c", 0, worker_compute.initial()) is not None


def test_workers_with_batches_too_small_are_named_before_the_run():
    worker_compute = WorkerCompute(but(model=model("batch_norm"), partition=Dealt((1, 9, 5))))
    (unable,) = worker_compute.rehearse(worker_compute.initial()).items()
    assert unable[0] == "a"
    assert "a batch of one sample" in unable[1]
    with pytest.raises(InputError, match="a batch of one sample"):
        rehearse(but(model=model("batch_norm"), batch_size=1))


def test_an_evaluation_that_fails_later_ends_no_run(caplog):
    worker_compute = WorkerCompute(
        but(model=model("picky"), data=data("one_huge"), metrics=(metric("fails"),))
    )
    for _ in range(2):
        found = worker_compute.evaluate(worker_compute.initial())
        assert found["fails"] != found["fails"]
    assert len(caplog.records) == 1


def test_the_local_rate_follows_the_schedule():
    rates = Sgd(lr=0.5, schedule=Cosine())
    still, moving = (
        WorkerCompute(but(local_steps=3, local_lr=0.5, **more, momentum=0.0))
        for more in ({}, {"local_rates": rates, "rounds": 10})
    )
    x = still.initial()
    assert torch.equal(still.contribution("a", 0, x), moving.contribution("a", 0, x))
    assert not torch.equal(still.contribution("a", 5, x), moving.contribution("a", 5, x))
    slower = WorkerCompute(but(local_steps=3, local_lr=rates.rate(5, 10), momentum=0.0))
    assert torch.equal(slower.contribution("a", 5, x), moving.contribution("a", 5, x))


def test_outputs_are_never_broadcast_against_targets():
    with pytest.raises(InputError, match=r"outputs of shape \[4, 3\] for targets of shape \[4\]"):
        MeanSquaredError()(torch.zeros(4, 3), torch.zeros(4))
    assert float(MeanSquaredError()(torch.ones(4, 1), torch.zeros(4))) == 1


def test_scores_of_places_may_come_before_or_after_them():
    scores, labels = (
        torch.arange(30.0).sin().view(2, 5, 3),
        torch.tensor([[0, 1, 2, -100, 1], [2, 2, 0, 1, -100]]),
    )
    expected = nn.functional.cross_entropy(scores.transpose(1, 2), labels)
    assert torch.allclose(CrossEntropy()(scores, labels), expected)
    assert torch.allclose(CrossEntropy()(scores.transpose(1, 2), labels), expected)


class Panic(BaseException):
    """As libraries in other languages raise them."""

    def __str__(self):
        raise ValueError


def test_whatever_is_raised_is_one_sentence_but_for_ctrl_c():
    with pytest.raises(InputError, match=r"it failed: Panic"), guard("it"):
        raise Panic
    with pytest.raises(InputError, match="it failed: StopIteration"), guard("it"):
        raise StopIteration
    with pytest.raises(KeyboardInterrupt), guard("it"):
        raise KeyboardInterrupt


def test_a_file_that_a_library_hides_and_one_with_its_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "queue.py").write_text("def build():\n    pass\n")
    with pytest.raises(
        InputError, match=r"queue has no 'build' \(it is .*; queue\.py in this folder needs"
    ):
        resolve("queue:build")
    with pytest.raises(InputError, match=r"Write 'parts\.mine:build'"):
        resolve("parts/mine.py:build")


def test_what_could_steer_a_terminal_is_escaped_in_a_sentence_about_an_error():
    assert plugins.describe_error(ValueError("\x1b[31mred\u202e")) == r"ValueError: \x1b[31mred\u202e"
