"""The model, the rules and the evaluation of a ByzFL configuration: what no number of workers changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from varangian.experiments.sweep.byzfl.axes import Axis, each, nested, without_repetitions
from varangian.experiments.sweep.byzfl.names import Spec, our_mixing, our_rule
from varangian.experiments.sweep.byzfl.reading import (
    COUNT,
    POSITIVE,
    SHARE,
    SIMILARITY,
    TEXT,
    TRUTH,
    Document,
    Kind,
)
from varangian.registry import join, suggestion

_DEEPER: Mapping[str, tuple[Spec, str]] = {
    f"ResNet{depth}": ("resnet18", "resnet18 is taken, the deepest model here")
    for depth in (34, 50, 101, 152)
}
MODELS: Mapping[str, tuple[Spec, str]] = {
    "fc_mnist": ({"mlp": {"hidden": 100}}, ""),
    "logreg_mnist": ("softmax", "softmax has no sigmoid before its loss"),
    "cnn_mnist": ("cnn", "cnn is taken, with three convolutions in place of two and one linear layer"),
    "cnn_cifar": ("cnn", "cnn is taken, which is smaller and has one linear layer"),
    "ResNet18": ("resnet18", "resnet18 is taken, with group in place of batch normalisation"),
    **_DEEPER,
}
DATA = ("mnist", "fashionmnist", "emnist", "cifar10", "cifar100", "imagenet")
AUGMENTED = ("fashionmnist", "cifar10", "cifar100", "imagenet")
LOSSES = ("NLLLoss", "CrossEntropyLoss")
PARTITIONS: Mapping[str, tuple[str, Kind | None]] = {
    "iid": ("iid", None),
    "extreme_niid": ("extreme", None),
    "dirichlet_niid": ("dirichlet.alpha", POSITIVE),
    "gamma_similarity_niid": ("gamma_similarity.gamma", SIMILARITY),
}
"""The name here, with the field that the distribution parameter is, and its kind."""


def experiment_axes(document: Document) -> Iterator[Axis]:
    """The axes of everything but workers, attacks and the training algorithm."""
    yield each("rounds", document.values("benchmark_config.nb_steps", COUNT, 1000))
    yield each("data", [_data(document, n) for n in document.choices("model.dataset_name", DATA, "mnist")])
    yield each(
        "model", [_model(document, n) for n in document.choices("model.name", [*MODELS], "cnn_mnist")]
    )
    yield _partition(document)
    yield each("worker.batch_size", document.values("honest_clients.batch_size", COUNT, 32))
    yield each("aggregator", _aggregators(document))
    yield each("optimizer.lr", document.values("model.learning_rate", POSITIVE, 0.1))
    yield [_evaluation(document)]
    document.choices("model.loss", LOSSES, "NLLLoss")  # both are cross entropy, which is the default
    document.one("model.nb_labels", COUNT, 10)
    if document.find("benchmark_config.nb_workers") is not None:
        document.note("nb_workers: ignored, as in ByzFL, which counts honest and Byzantine workers.")


def _evaluation(document: Document) -> dict[str, Any]:
    here = "evaluation_and_results"
    settings = {
        "evaluate.every": document.one(f"{here}.evaluation_delta", COUNT, 50),
        "output": document.one(f"{here}.results_directory", TEXT, "./results"),
    }
    share = document.one("benchmark_config.size_train_set", SHARE, 0.8)
    if share < 1:
        settings["evaluate.validation"] = float(f"{1 - share:.6g}")
    device = document.one("benchmark_config.device", TEXT, "cpu")
    if device != "cpu" and not _usable(device):
        document.note(f"device: {device} cannot be used on this machine; cpu is taken.")
        device = "cpu"
    if device != "cpu":
        settings["worker.device"] = device
    document.one(f"{here}.batch_size_evaluation", COUNT, 128)  # only a matter of memory
    if not document.one(f"{here}.evaluate_on_test", TRUTH, True):
        document.note("evaluate_on_test: held-out samples are evaluated in every case.")
    if document.one(f"{here}.store_models", TRUTH, False):
        document.note(
            "store_models: a run folder holds the last parameters, not those of every evaluation."
        )
    if document.one(f"{here}.store_per_client_metrics", TRUTH, True):
        document.note(
            "store_per_client_metrics: losses of single workers are not stored; a report shows the weight "
            "of each worker over the rounds."
        )
    document.note(
        "Heat maps: ByzFL shows the accuracy at the step that was best on validation data, a report that "
        "of the best evaluation on test data."
    )
    return settings


def _usable(device: str) -> bool:
    import torch  # only where a device is named

    try:
        torch.empty(1, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


def _data(document: Document, name: str) -> Spec:
    """The data set: that of ByzFL where its folder has parquet files of it, and the digits elsewhere."""
    if name in AUGMENTED:
        document.note(f"{name}: training images are not flipped or cropped at random, as in ByzFL.")
    folder = Path(str(document.find("evaluation_and_results.data_folder") or "./data"))
    for place, files in ((folder / name, "**/train*.parquet"), (folder, "train*.parquet")):
        if place.is_dir() and any(place.glob(files)):
            return {"cifar10" if name == "cifar10" else "parquet": {"path": str(place)}}
    ours = "cifar10" if name == "cifar10" else "parquet"
    document.note(
        f"{name}: nothing is downloaded, and {folder} has no parquet files of it; the digits of "
        f"scikit-learn, of 8x8 pixels, are taken. With such files add 'data={{{ours}: {{path: FOLDER}}}}'."
    )
    return "digits"


def _model(document: Document, name: str) -> Spec:
    spec, note = MODELS[name]
    if note:
        document.note(f"{name}: {note}.")
    return spec


def _partition(document: Document) -> Axis:
    path = "benchmark_config.data_distribution"
    found = list[tuple[str, float | None]]()
    for named in document.named(path, "iid"):
        if named.name not in PARTITIONS:
            hint = suggestion(named.name, PARTITIONS)
            rule = "there is no distribution of this name in ByzFL"
            document.say(join(named.path, "name"), rule, named.name, hint)
            continue
        ours, kind = PARTITIONS[named.name]
        value = named.parameters.get("distribution_parameter")
        if kind is not None and not kind.fits(value):
            document.say(join(named.path, "distribution_parameter"), f"should be {kind.words}", value)
        else:
            found.append((ours, None if kind is None or value is None else float(value)))
    found = without_repetitions(found)
    if len({ours for ours, _ in found}) == 1 and found[0][1] is not None:
        return each(f"partition.{found[0][0]}", [value for _, value in found])
    return each("partition", [ours if value is None else nested({ours: value}) for ours, value in found])


def _aggregators(document: Document) -> list[Any]:
    """Every rule after every list of pre-aggregators."""
    rules = [our_rule(document, named) for named in document.named("aggregator", "Average")]
    pipelines = [
        [our_mixing(document, named) for named in pipeline]
        for pipeline in document.pipelines("pre_aggregators")
    ]
    return [_pipeline(mix, rule) for mix, rule in product(pipelines, rules) if rule and all(mix)]


def _pipeline(mix: Sequence[Spec | None], rule: Spec) -> Spec:
    if all(isinstance(part, str) for part in (*mix, rule)):
        return "+".join(str(part) for part in (*mix, rule))
    return {"mix": list(mix), "rule": rule} if mix else rule
