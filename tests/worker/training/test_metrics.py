"""Metrics with several values, of single classes, of attacks and of subsets."""

import math

import pytest
import torch

from varangian.registry import ConfigError
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Shared
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.losses import CrossEntropy
from varangian.worker.training.metrics import METRICS, Evaluated, MetricError
from varangian.worker.training.models import Mlp
from varangian.worker.training.task import Task

SCORES = torch.eye(4)[[0, 3, 3, 1, 2, 0]]
LABELS = torch.tensor([0, 0, 3, 1, 1, 3])
SAMPLES = Evaluated(SCORES, LABELS, 0, CrossEntropy(), 4, SCORES)


def values(spec, samples=SAMPLES):
    return {
        name: a / b if b else math.nan for name, (a, b) in METRICS.build(spec, "").totals(samples).items()
    }


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"class_accuracy": {"classes": [3, 0]}}, {"3": 0.5, "0": 0.5}),
        ("class_accuracy", {"0": 0.5, "1": 0.5, "2": math.nan, "3": 0.5}),
        ("attack_success", {"": 3 / 6}),  # 0 -> 3, 1 -> 2, 3 -> 0
        ({"attack_success": {"source": 0, "target": 3}}, {"": 1 / 2}),
        ({"attack_success": {"target": 0}}, {"": 1 / 4}),
        ({"attack_success": {"source": 2, "target": 3}}, {"": math.nan}),
        (
            {"subset_loss": {"classes": [1]}},
            {"": float(torch.nn.functional.cross_entropy(SCORES[3:5], LABELS[3:5]))},
        ),
        (
            {"subset_loss": {"indices": [1, 5, 99]}},
            {"": float(torch.nn.functional.cross_entropy(SCORES[[1, 5]], LABELS[[1, 5]]))},
        ),
        (
            {"subset_loss": {"target": "tests.own_parts:low", "options": {"below": 1}}},
            {"": float(torch.nn.functional.cross_entropy(SCORES[:2], LABELS[:2]))},
        ),
        ({"subset_loss": {"classes": [2]}}, {"": math.nan}),
    ],
)
def test_the_values_of_a_metric(spec, wanted):
    assert values(spec) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"attack_success": {"source": 3}}, "`target` should be given with `source`"),
        ({"attack_success": {"source": 3, "target": 3}}, "another class than `source`. Found 3"),
        ({"attack_success": {"target": -1}}, "`target` should be counted from 0"),
        ("subset_loss", "One of `classes`, `indices` and `target` should be given. Found none"),
        ({"subset_loss": {"classes": [1], "indices": [2]}}, "Found classes and indices"),
        ({"subset_loss": {"classes": []}}, "`classes` should be counted from 0, and not be empty"),
        (
            {"subset_loss": {"classes": [1], "options": {"a": 1}}},
            "`options` should stand beside a `target`",
        ),
        ({"class_accuracy": {"clases": [1]}}, "Did you mean 'classes'?"),
    ],
)
def test_settings_that_mean_nothing(spec, said):
    with pytest.raises(ConfigError, match="metrics") as found:
        METRICS.build(spec, "metrics")
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class_accuracy": {"classes": [4]}}, "should name classes from 0 to 3, as the data has. Found 4"),
        ({"attack_success": {"target": 9}}, "should name classes from 0 to 3"),
        ({"subset_loss": {"target": "tests.own_parts:places"}}, "should return a boolean for each of 6"),
    ],
)
def test_what_does_not_fit_the_data(spec, said):
    with pytest.raises(MetricError, match=said):
        values(spec)


def crew(*specs):
    metrics = tuple(METRICS.build(spec, "") for spec in specs)
    data = Synthetic(features=6, train=40, test=2100, classes=4)
    return WorkerCompute(
        Task(seed=1, workers=("a",), model=Mlp(hidden=8), data=data, partition=Shared(), metrics=metrics)
    )


def test_columns_are_known_before_the_first_round_and_batches_are_summed():
    worker_compute = crew(
        "accuracy",
        "class_accuracy",
        {"tests.own_parts:Recall": {"label": 2}},
        {"subset_loss": {"classes": [0, 2]}},
    )
    parameters = worker_compute.initial()
    worker_compute.rehearse(parameters)
    each = [f"class_accuracy_{label}" for label in range(4)]
    assert worker_compute.score_names == ("accuracy", *each, "Recall_share", "Recall_of", "subset_loss")
    found = worker_compute.evaluate(parameters)
    assert tuple(found) == ("loss", *worker_compute.score_names)
    assert found["Recall_share"] == pytest.approx(found["class_accuracy_2"])
    labels = worker_compute.dataset.test_y
    shares = [int((labels == label).sum()) / len(labels) for label in range(4)]
    total = sum(share * found[name] for share, name in zip(shares, each, strict=True))
    assert total == pytest.approx(found["accuracy"])


def test_two_metrics_of_one_kind_are_told_apart_by_their_names():
    attacked = {"attack_success": {"source": 0, "target": 1}}
    with pytest.raises(MetricError, match=r"different names.*Set `name`"):
        crew(attacked, "attack_success")
    named = {"attack_success": {"source": 0, "target": 1, "name": "from_0_to_1"}}
    assert [*crew(named, "attack_success").metrics] == ["from_0_to_1", "attack_success"]
    with pytest.raises(MetricError, match="another column"):
        crew({"attack_success": {"name": "lr"}})
