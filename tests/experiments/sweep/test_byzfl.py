"""Configurations of ByzFL's benchmark as grids. byzfl is needed only where it is the oracle."""

import copy
import importlib
import json
import sys
from importlib.util import find_spec, module_from_spec

import numpy as np
import pytest
import torch

from varangian.aggregators import aggregator_from
from varangian.config.load import loads
from varangian.config.overrides import Assignment, apply_overrides
from varangian.config.settings import groups
from varangian.config.yaml_text import parse
from varangian.experiments.sweep.byzfl import read_byzfl, translate
from varangian.registry import ConfigError
from varangian.worker.attacks import ATTACKS, Knowledge
from varangian.worker.data.partition import PARTITIONS

EXAMPLE = {
    "benchmark_config": {
        "training_algorithm": {"name": "DSGD", "parameters": {}},
        "nb_steps": 800,
        "training_seed": 0,
        "nb_training_seeds": 3,
        "nb_honest_clients": 10,
        "f": [1, 2, 3, 4],
        "data_distribution_seed": 0,
        "nb_data_distribution_seeds": 1,
        "data_distribution": [
            {"name": "gamma_similarity_niid", "distribution_parameter": [1.0, 0.66, 0.33, 0.0]}
        ],
    },
    "model": {
        "name": "cnn_mnist",
        "dataset_name": "mnist",
        "nb_labels": 10,
        "loss": "NLLLoss",
        "learning_rate": 0.1,
        "learning_rate_decay": 1.0,
        "milestones": [],
    },
    "aggregator": [{"name": "GeometricMedian", "parameters": {"nu": 0.1, "T": 3}}, {"name": "TrMean"}],
    "pre_aggregators": [{"name": "Clipping", "parameters": {}}, {"name": "NNM", "parameters": {}}],
    "honest_clients": {"momentum": 0.9, "weight_decay": 0.0001, "batch_size": 25},
    "attack": [
        {"name": "SignFlipping"},
        {"name": "Optimal_InnerProductManipulation"},
        {"name": "Optimal_ALittleIsEnough"},
    ],
    "evaluation_and_results": {"evaluation_delta": 50, "results_directory": "./results"},
}
"""The one of its documentation, in fewer lines."""
SMALL = {"benchmark_config": {"f": 2}, "attack": {"name": "SignFlipping"}}


def changed(config=SMALL, **settings):
    """A copy with other values, by path with __ for the dot."""
    copied = copy.deepcopy(config)
    for path, value in settings.items():
        *sections, last = path.split("__")
        node = copied
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return copied


def configurations(grid):
    """All runs of a grid with the first seed."""
    points = [{}]
    for path, values in grid.get("grid", {}).items():
        points = [{**point, path: value} for point in points for value in values]
    points = [{**point, **case} for case in grid.get("cases", [{}]) for point in points]
    for point in points:
        assignments = [Assignment(path, value, path) for path, value in point.items()]
        yield loads(apply_overrides(grid["base"], assignments, groups()))


def said(translation, word):
    """The notes that begin with a word."""
    return [note for note in translation.notes if note.startswith(word)]


def test_the_example_of_its_documentation():
    translation = translate(EXAMPLE, name="example")
    mix = [{"clipping": {"radius": 2.0}}, "nnm"]
    assert translation.grid == {
        "name": "example",
        "base": {
            "rounds": 800,
            "data": "digits",
            "model": "cnn",
            "worker": {"batch_size": 25, "momentum": 0.9},
            "optimizer": {"lr": 0.1, "weight_decay": 0.0001},
            "evaluate": {"every": 50, "validation": 0.2},
            "output": "./results",
            "byzantine": {"data": "all", "knows": "all"},
        },
        "grid": {
            "partition.gamma_similarity.gamma": [1.0, 0.66, 0.33, 0.0],
            "aggregator": [{"mix": mix, "rule": "geometric_median"}, {"mix": mix, "rule": "trimmed_mean"}],
            "byzantine.attack": [
                {"ipm": {"epsilon": 1.0}},
                {"ipm": {"epsilon": "optimal"}},
                {"alie": {"z": "optimal"}},
            ],
        },
        "cases": [{"workers": 10 + f, "f": f, "byzantine.count": f} for f in (1, 2, 3, 4)],
        "seeds": [0, 1, 2],
    }
    for word in ("mnist", "cnn_mnist", "GeometricMedian", "Optimal_InnerProductManipulation", "Seeds"):
        assert len(said(translation, word)) == 1
    assert "2.5" not in " ".join(translation.notes)
    few = {**translation.grid, "cases": translation.grid["cases"][:2]}
    assert len([*configurations(few)]) == 2 * 4 * 2 * 3


def test_a_translation_can_be_kept_as_a_grid_file():
    translation = translate(EXAMPLE)
    text = translation.as_yaml()
    assert parse(text, "here") == translation.grid
    assert text.startswith("# mnist: ")
    assert "&id" not in text


@pytest.mark.whole
@pytest.mark.parametrize(
    ("rule", "ours"),
    [
        ({"name": "Average"}, "mean"),
        ({"name": "Median"}, "median"),
        ({"name": "TrMean"}, "trimmed_mean"),
        ({"name": "Krum"}, {"krum": {"convention": "byzfl"}}),
        ({"name": "MultiKrum"}, {"multi_krum": {"convention": "byzfl"}}),
        ({"name": "CenteredClipping"}, {"centered_clipping": {"tau": 100.0, "iterations": 1}}),
        (
            {"name": "CenteredClipping", "parameters": {"L": 3, "tau": 1}},
            {"centered_clipping": {"tau": 1.0, "iterations": 3}},
        ),
        ({"name": "MDA"}, "mda"),
        ({"name": "MoNNA"}, "monna"),
        ({"name": "Meamed"}, "meamed"),
        ({"name": "CAF"}, "caf"),
        ({"name": "SMEA"}, "smea"),
    ],
)
def test_rules(rule, ours):
    translation = translate(changed(aggregator=rule))
    assert translation.grid["base"]["aggregator"] == ours
    assert aggregator_from(ours, "aggregator", f=2).requires(12, 2) is None
    assert [*configurations(translation.grid)]


def test_every_rule_after_every_list_of_pre_aggregators():
    bucketing = {"name": "Bucketing", "parameters": {"s": 2}}
    pipelines = [[], [{"name": "NNM"}], [bucketing, {"name": "ARC"}]]
    rules = [{"name": "TrMean"}, {"name": "Median"}]
    grid = translate(changed(aggregator=rules, pre_aggregators=pipelines)).grid
    mix = [{"bucketing": {"s": 2}}, "arc"]
    assert grid["grid"]["aggregator"] == [
        *("trimmed_mean", "median"),
        *("nnm+trimmed_mean", "nnm+median"),
        *({"mix": mix, "rule": "trimmed_mean"}, {"mix": mix, "rule": "median"}),
    ]


def test_parameters_with_several_values_are_several_rules():
    rule = {"name": "CenteredClipping", "parameters": {"tau": [1.0, 10.0], "L": [1, 2]}}
    found = translate(changed(aggregator=rule)).grid["grid"]["aggregator"]
    assert [tuple(one["centered_clipping"].values()) for one in found] == [(1, 1), (1, 2), (10, 1), (10, 2)]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("attack", "ours"),
    [
        ({"name": "SignFlipping"}, {"ipm": {"epsilon": 1.0}}),
        ({"name": "InnerProductManipulation", "parameters": {"tau": 3}}, {"ipm": {"epsilon": 3.0}}),
        ({"name": "ALittleIsEnough"}, {"alie": {"z": -1.58114}}),
        ({"name": "Mimic", "parameters": {"epsilon": 4}}, {"mimic": {"target": 4}}),
        ({"name": "Gaussian", "parameters": {"sigma": 2.0}}, {"gaussian": {"sigma": 2.0}}),
        ({"name": "Inf"}, {"non_finite": {"value": "inf"}}),
        ({"name": "LabelFlipping"}, "label_flip"),
    ],
)
def test_attacks(attack, ours):
    translation = translate(changed(attack=attack))
    assert translation.grid["base"]["byzantine"]["attack"] == ours
    assert [*configurations(translation.grid)]


def test_attacks_that_are_the_same_here_are_run_once():
    attacks = [
        {"name": "SignFlipping"},
        {"name": "InnerProductManipulation", "parameters": {"tau": 1.0}},
    ]
    translation = translate(changed(attack=attacks))
    assert translation.grid["base"]["byzantine"]["attack"] == {"ipm": {"epsilon": 1.0}}
    assert "the same as SignFlipping" in said(translation, "InnerProduct")[-1]


@pytest.mark.parametrize(
    ("name", "ours", "note"),
    [
        ("Optimal_InnerProductManipulation", {"ipm": {"epsilon": "optimal"}}, "above 0"),
        ("Optimal_ALittleIsEnough", {"alie": {"z": "optimal"}}, "are subtracted"),
    ],
)
def test_the_strength_of_an_optimal_attack_is_searched_here_too(name, ours, note):
    attack = {"name": name, "parameters": {"evals": 5, "delta": 2.0}}
    translation = translate(changed(attack=attack))
    (config,) = configurations(translation.grid)
    assert translation.grid["base"]["byzantine"]["attack"] == ours
    assert (config.byzantine.knows or config.byzantine.attack.needs) == "all"
    (found,) = said(translation, name)
    assert note in found


def test_without_attackers_there_is_one_run_for_all_attacks():
    attacks = [{"name": "SignFlipping"}, {"name": "Mimic"}]
    grid = translate(changed(benchmark_config__f=[0, 2], attack=attacks)).grid
    assert grid["cases"] == [
        {"workers": 10, "f": 0, "byzantine.count": 0},
        {"workers": 12, "f": 2, "byzantine.count": 2, "byzantine.attack": {"ipm": {"epsilon": 1.0}}},
        {"workers": 12, "f": 2, "byzantine.count": 2, "byzantine.attack": {"mimic": {"target": 0}}},
    ]
    assert [config.byzantine.count for config in configurations(grid)] == [0, 2, 2]


def test_no_attack_leaves_everybody_honest():
    translation = translate(changed(attack={"name": "NoAttack"}))
    (config,) = configurations(translation.grid)
    assert (config.workers, config.f, config.byzantine.count) == (12, 2, 0)
    assert said(translation, "NoAttack")


def test_the_number_that_is_tolerated_is_never_below_that_of_attackers():
    grid = translate(changed(benchmark_config__f=[1, 3], benchmark_config__tolerated_f=[2, 3])).grid
    assert [(case["byzantine.count"], case["f"]) for case in grid["cases"]] == [(1, 2), (1, 3), (3, 3)]


def test_the_number_of_clients_may_include_attackers():
    config = changed(benchmark_config__set_honest_clients_as_clients=True, benchmark_config__f=[1, 3])
    grid = translate(changed(config, attack={"name": "ALittleIsEnough"})).grid
    assert grid["base"]["workers"] == 10
    assert [case["byzantine.attack"]["alie"]["z"] for case in grid["cases"]] == [-1.59099, -1.62019]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("distribution", "base", "grid"),
    [
        ({"name": "iid"}, "iid", {}),
        ({"name": "extreme_niid", "distribution_parameter": None}, "extreme", {}),
        ({"name": "dirichlet_niid", "distribution_parameter": 0.5}, {"dirichlet": {"alpha": 0.5}}, {}),
        (
            {"name": "dirichlet_niid", "distribution_parameter": [1, 0.1]},
            None,
            {"partition.dirichlet.alpha": [1.0, 0.1]},
        ),
        (
            [{"name": "iid"}, {"name": "dirichlet_niid", "distribution_parameter": 1.0}],
            None,
            {"partition": ["iid", {"dirichlet": {"alpha": 1.0}}]},
        ),
    ],
)
def test_distributions(distribution, base, grid):
    translated = translate(changed(benchmark_config__data_distribution=distribution)).grid
    assert translated["base"].get("partition") == base
    assert translated.get("grid", {}) == grid
    assert [*configurations(translated)]


def test_local_training():
    algorithm = {
        "name": "FedAvg",
        "parameters": {"proportion_selected_clients": 0.8, "local_steps_per_client": [1, 5]},
    }
    config = changed(benchmark_config__training_algorithm=algorithm, honest_clients__weight_decay=0.01)
    translation = translate(changed(config, model__learning_rate=0.05))
    first, second = configurations(translation.grid)
    assert (first.worker.local_steps, second.worker.local_steps) == (1, 5)
    assert (second.participation.participants, second.worker.momentum) == (8, 0)
    assert (second.optimizer.lr, second.optimizer.weight_decay) == (0.05, 0.05)
    assert len(said(translation, "FedAvg")) == 4
    both = changed(config, benchmark_config__training_algorithm=[algorithm, {"name": "DSGD"}])
    momenta = [config.worker.momentum for config in configurations(translate(both).grid)]
    assert momenta == [0, 0, 0.9]


def test_values_that_are_chosen_on_validation_data():
    config = changed(model__learning_rate=[0.1, 0.5], honest_clients__momentum=[0.0, 0.9])
    translation = translate(config)
    assert translation.grid["tune"] == "optimizer.lr"
    assert translation.grid["base"]["evaluate"]["validation"] == 0.2
    assert translation.grid["grid"] == {"optimizer.lr": [0.1, 0.5], "worker.momentum": [0.0, 0.9]}
    assert said(translation, "optimizer.lr is chosen")
    whole = translate(changed(config, benchmark_config__size_train_set=1.0)).grid
    assert "tune" not in whole
    assert "validation" not in whole["base"]["evaluate"]


def test_schedules():
    config = changed(model__milestones=[100, 200], model__learning_rate_decay=[1.0, 0.5])
    schedules = translate(config).grid["grid"]["optimizer.schedule"]
    assert schedules == ["constant", {"multi_step": {"milestones": [100, 200], "gamma": 0.5}}]
    assert "schedule" not in translate(changed(model__milestones=[100])).grid["base"]["optimizer"]


def test_seeds():
    config = changed(benchmark_config__training_seed=7, benchmark_config__nb_training_seeds=2)
    assert translate(config).grid["seeds"] == [7, 8]
    translation = translate(changed(config, benchmark_config__nb_data_distribution_seeds=2))
    assert translation.grid["seeds"] == [7, 8, 9, 10]
    assert "2 times 2 seeds" in said(translation, "Seeds")[0]


def test_parquet_files_in_the_folder_of_data_are_taken(tmp_path):
    def data(name):
        folder = {"evaluation_and_results": {"data_folder": str(tmp_path)}}
        return translate({**SMALL, **folder, "model": {"dataset_name": name}}).grid["base"]["data"]

    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-00000-of-00001.parquet").touch()
    assert data("mnist") == {"parquet": {"path": str(tmp_path / "mnist")}}
    assert data("cifar10") == "digits"
    (tmp_path / "train-00000-of-00001.parquet").touch()
    assert data("cifar10") == {"cifar10": {"path": str(tmp_path)}}


def test_a_device_that_is_not_there():
    translation = translate(changed(benchmark_config__device="nowhere"))
    assert said(translation, "device")
    assert "device" not in translation.grid["base"].get("worker", {})


def test_all_problems_at_once():
    config = {
        "benchmark_config": {
            "nb_stepps": 3,
            "nb_byz": 2,
            "f": [1, -1],
            "training_algorithm": {"name": "FedAvg", "parameters": {"local_steps_per_client": 0}},
            "data_distribution": {"name": "gamma_similarity_niid", "distribution_parameter": 2.0},
        },
        "honest_nodes": {},
        "model": {"name": "cnn_mnits", "learning_rate": [], "milestones": [5, 2], "learning_rate_decay": 2},
        "aggregator": [{"name": "TrimMean"}, {"nme": "Krum"}],
        "pre_aggregators": [[{"name": "NNM"}], [{"name": "Clipping", "parameters": {"radius": 2.0}}]],
        "attack": {"name": "Mimic", "parameters": {"epsilon": -1}},
    }
    with pytest.raises(ConfigError) as caught:
        translate(config)
    found = {problem.path: str(problem) for problem in caught.value.problems}
    expected = {
        "benchmark_config.nb_stepps": "Did you mean 'nb_steps'",
        "benchmark_config.nb_byz": "ByzFL 0.0.11 has it as benchmark_config.f",
        "benchmark_config.f.1": "whole number from 0",
        "benchmark_config.training_algorithm.parameters.local_steps_per_client": "from 1",
        "benchmark_config.training_algorithm.parameters.proportion_selected_clients": "above 0",
        "benchmark_config.data_distribution.distribution_parameter": "from 0 to 1. Found 2.0",
        "honest_nodes": "honest_clients",
        "model.name": "Did you mean 'cnn_mnist'",
        "model.learning_rate": "at least one value",
        "model.learning_rate_decay": "at most 1",
        "aggregator.0.name": "Did you mean 'TrMean'",
        "aggregator.1": "a `name`",
        "pre_aggregators.1.0.parameters.radius": "there is no such parameter",
        "attack.parameters.epsilon": "whole number from 0",
    }
    assert set(found) >= set(expected)
    for path, words in expected.items():
        assert words in found[path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"benchmark_config": {"f": 1,}}', r"line 1, column \d+: is not valid JSON.*comma before }"),
        ("[1]", "should be a mapping of sections"),
        ('{"grid": {"f": [1, 2]}}', "is no configuration of ByzFL.*without --from-byzfl"),
        ('{"model": {"loss": "NLLLoss", "loss": "NLLLoss"}}', "a key should stand once.*'loss'"),
        ("[" * 100_000, "nest less deeply"),
    ],
)
def test_files_that_are_none_of_its(tmp_path, text, words):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_byzfl(file)
    with pytest.raises(ConfigError, match=r"missing\.json: the configuration cannot be read"):
        read_byzfl(tmp_path / "missing.json")


def test_a_file(tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(SMALL))
    assert read_byzfl(file) == translate(SMALL, name="study")


# ---- against byzfl itself


@pytest.fixture(scope="module")
def byzfl():
    """Its package without its own import, which needs torchvision and plotting."""
    spec = find_spec("byzfl")
    if spec is None:
        pytest.skip("byzfl is not installed")
    sys.modules.setdefault("byzfl", module_from_spec(spec))
    return lambda module: importlib.import_module(f"byzfl.{module}")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("SignFlipping", {}),
        ("InnerProductManipulation", {"tau": 3.0}),
        ("ALittleIsEnough", {"tau": 0.7}),
        ("Mimic", {"epsilon": 2}),
        ("Inf", {}),
    ],
)
def test_attackers_send_what_they_send_in_byzfl(byzfl, name, parameters):
    honest = torch.randn(10, 40, generator=torch.Generator().manual_seed(1))
    theirs = getattr(byzfl("attacks.attacks"), name)(**parameters)(honest.clone())
    grid = translate(changed(attack={"name": name, "parameters": parameters})).grid
    knows = Knowledge(honest=honest, n=12, f=2, rank=0, round=0, rng=torch.Generator())
    ours = ATTACKS.build(grid["base"]["byzantine"]["attack"], "")(honest[0], knows)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_samples_are_dealt_as_in_byzfl(byzfl, similarity):
    """The classes of each worker: sorted ones are the same, those at random nearly as many."""
    labels = torch.arange(1000) % 10
    samples = torch.utils.data.TensorDataset(labels)
    samples.targets = labels
    distributor = byzfl("fed_framework.data_distributor").DataDistributor(
        {
            "data_distribution_name": "gamma_similarity_niid",
            "distribution_parameter": similarity,
            "nb_honest": 5,
            "data_loader": torch.utils.data.Subset(samples, np.arange(1000)),
            "batch_size": 10,
        }
    )
    theirs = [labels[torch.as_tensor(loader.dataset.indices)] for loader in distributor.split_data()]
    ours = PARTITIONS.build({"gamma_similarity": {"gamma": similarity}}, "").split(labels, 5, 1)
    for them, us in zip(theirs, ours, strict=True):
        assert len(them) == len(us)
        difference = torch.bincount(them, minlength=10) - torch.bincount(labels[us], minlength=10)
        assert int(difference.abs().max()) <= 60 * similarity * (1 - similarity / 2)
