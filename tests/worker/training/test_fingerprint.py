"""Settings that machines must have in common: equal here and there, and a sentence for what is not."""

import dataclasses
import re

import pytest
import torch

from varangian.protos.shared_settings import TOLERANCE, SharedSettings
from varangian.worker.data import Dataset, Synthetic
from varangian.worker.data.partition import PARTITIONS, Dirichlet, Iid, Private, Shared
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.losses import LOSSES
from varangian.worker.training.models import Mlp, Softmax
from varangian.worker.training.task import Task

X, Y = torch.arange(40.0).sin().view(10, 4), torch.arange(10) % 3


@dataclasses.dataclass(frozen=True, eq=False)
class Mine:
    """Data in memory, as a function of the user's would make it on one machine."""

    x: torch.Tensor = X
    y: torch.Tensor = Y
    classes: int | None = None

    def load(self):
        return Dataset("mine", self.classes, self.x, self.y, self.x, self.y)


TASK = Task(seed=1, workers=("w00", "w01"), model=Softmax(), data=Mine(), partition=Iid())


def differences(at=None, **changes):
    """What the server of TASK says of a worker with other settings: names, and one text."""
    ours = TASK if at is None else dataclasses.replace(TASK, partition=at)
    server = WorkerCompute(ours).common
    worker = WorkerCompute(
        dataclasses.replace(ours, **{"classes": WorkerCompute(ours).dataset.classes} | changes)
    ).common
    found = [*server.differences(worker.text)]
    assert all(name in server.loose for name, _ in found) == (
        not found or isinstance(ours.partition, Shared)
    )
    return [name for name, _ in found], " ".join(sentence for _, sentence in found)


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(), Shared(), Private()])
def test_the_same_settings_and_data_agree(partition):
    assert differences(partition) == ([], "")


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"loss": LOSSES.build("mse", ""), "data": Mine(y=Y.float())}, "loss", "cross_entropy.*Found mse"),
        ({"model": Mlp(hidden=4)}, "model", "should be softmax, as at the server. Found mlp"),
        ({"momentum": 0.0}, "worker.momentum", "0.9.*Found 0"),
        ({"local_steps": 2}, "worker.local_steps", "1.*Found 2"),
        ({"seed": 2}, "seed", "partition=iid.*who gets which"),
        ({"partition": Shared()}, "partition", "iid.*Found shared"),
        ({"data": Mine(classes=5)}, "classes", "3.*Found 5.*data.custom.classes"),
        ({"data": Mine(x=X.roll(1, 0))}, "data: inputs", "without a seed.*partition=private"),
        ({"data": Mine(y=Y.roll(1))}, "data: targets", "without a seed"),
        ({"data": Mine(x=X[:9], y=Y[:9])}, "data: training samples", "10.*Found 9"),
    ],
)
def test_what_differs_is_named(changes, name, words):
    names, text = differences(**changes)
    assert name in names
    assert re.search(words, text)


def test_data_of_ones_own_is_a_warning_or_nothing():
    other = {"data": Mine(x=-X)}
    assert differences(Shared(), **other)[0] == ["data: inputs"]
    assert differences(Private(), **other) == ([], "")


def test_machines_may_round_differently():
    assert differences(data=Mine(x=X + TOLERANCE / 10 * X.abs().mean())) == ([], "")


def test_a_site_without_the_top_class_takes_the_number_of_the_server():
    site = WorkerCompute(dataclasses.replace(TASK, data=Mine(y=Y % 2), classes=3))
    assert site.dataset.classes == 3
    assert site.layout == WorkerCompute(TASK).layout


@pytest.mark.parametrize(
    "text", ["", "no json\n", '["loss"]\n', '{"loss": 1}\n', "[" * 9999, '["loss", 3]\n']
)
def test_what_is_no_entry_is_not_compared(text):
    assert [*WorkerCompute(TASK).common.differences(text)] == []
    assert [*SharedSettings().differences('["loss", "mse"]\n')] == []


def test_every_partition_says_whether_it_needs_labels():
    assert {name: PARTITIONS.entry(name)[0].by_label for name in PARTITIONS} == {
        "dirichlet": True,
        "extreme": True,
        "gamma_similarity": True,
        "halves": True,
        "iid": False,
        "private": False,
        "shards": True,
        "shared": False,
    }
    assert Synthetic().load().labels is not None
