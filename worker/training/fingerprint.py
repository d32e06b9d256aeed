"""Settings and a fingerprint of the data that the machines of a run should share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

from varangian.protos.shared_settings import SharedSettings
from varangian.registry import Registry
from varangian.worker.data.base import Dataset
from varangian.worker.data.partition import PARTITIONS, Private, Shared
from varangian.worker.data.samples import Samples, tensors
from varangian.worker.training.error_feedback import describe_deltas
from varangian.worker.training.losses import LOSSES
from varangian.worker.training.models import MODELS
from varangian.worker.training.task import Task

PROBES = 24
"""Samples of which the fingerprint has a number."""
SAME_DATA = (
    "Does a data function draw random numbers without a seed? With partition={partition} all machines need "
    "the same samples; where each site has data of its own, say partition=private."
)
ADVICE = {
    "classes": "State their number at all machines, as data.custom.classes.",
    "seed": "With partition={partition} it says who gets which samples.",
}
MEMBERS = "With partition={partition} it may, as when workers have joined or left meanwhile."
SETTINGS = "Give all machines one configuration."


def shared_settings(task: Task, dataset: Dataset) -> SharedSettings:
    """The shared settings of this machine, from its settings and its data.

    Data is compared where samples are dealt out; where every worker draws from all it has, data that
    differs is worth a warning; where it is private, nothing is compared.
    """
    partition = registered_name(PARTITIONS, task.partition)
    entries = {
        "workers": str(len(task.workers)),
        "loss": describe_entry(LOSSES, task.loss),
        "model": describe_entry(MODELS, task.model),
        "classes": str(dataset.classes or "none"),
        "partition": describe_entry(PARTITIONS, task.partition),
        "worker.momentum": f"{task.momentum:g}",
        "worker.local_steps": str(task.local_steps),
        "participation": _describe_vectors(task),
    }
    if task.holders != task.workers:
        entries["partition"] += f" among {len(task.holders)}"
    if task.validation is not None:
        entries |= {"evaluate.validation": f"{task.validation:g}", "seed": str(task.seed)}
    if task.fragments > 1:
        entries["server.fragments"] = str(task.fragments)
    if task.inner is not None:
        entries["worker.inner"] = repr(task.inner)
    elif task.local_steps > 1:
        entries["worker.local_lr"] = f"{task.gamma(0):g}"
    if task.buffers != "refuse":
        entries["buffers"] = task.buffers
    loose = frozenset[str]()
    if not isinstance(task.partition, Private):
        entries |= fingerprint(dataset)
    if isinstance(task.partition, Shared):
        # Workers may come and go while the run goes on, where no share of theirs depends on who is there.
        loose = frozenset({"workers", *fingerprint_names(entries)})
    else:
        entries["seed"] = str(task.seed)
    advice = {name: ADVICE.get(name, SETTINGS) for name in entries}
    advice |= dict.fromkeys(fingerprint_names(entries), SAME_DATA)
    if "workers" in loose:
        advice["workers"] = MEMBERS
    return SharedSettings(
        entries, {name: text.format(partition=partition) for name, text in advice.items()}, loose
    )


def _describe_vectors(task: Task) -> str:
    """What is pushed."""
    return describe_deltas(task.wire) if task.deltas else "vectors"


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """A fingerprint of the training samples: their count, all integers, some of the other numbers."""
    entries = {"data: training samples": str(dataset.size)}
    for part, samples in (("inputs", dataset.train_x), ("targets", dataset.train_y)):
        entries |= dict(fingerprint_samples(f"data: {part}", samples))
    return entries


def fingerprint_names(entries: Mapping[str, str]) -> list[str]:
    return [name for name in entries if name.startswith("data: ")]


def fingerprint_samples(name: str, samples: Samples) -> list[tuple[str, str]]:
    found = []
    for place, tensor in tensors(samples):
        exact = not tensor.is_floating_point() and tensor.dtype != torch.uint8
        found.append((f"{name}{place}", exact_digest(tensor) if exact else probe_means(tensor)))
    return found


def exact_digest(tensor: Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(tensor.to(torch.int64).contiguous().numpy().data)


def probe_means(tensor: Tensor) -> str:
    """The mean of some samples, evenly spread, as a JSON list."""
    places = (
        torch.linspace(0, len(tensor) - 1, min(PROBES, len(tensor)), dtype=torch.float32).long().tolist()
    )
    return json.dumps([round(float(tensor[place].double().mean()), 6) for place in places])


def describe_entry(registry: Registry[Any], built: object) -> str:
    """A name and its fields, in short; of what a program made, its type."""
    try:
        ((name, fields),) = registry.spec(built).items()
    except KeyError:
        return type(built).__name__
    return f"{name} {json.dumps(fields, sort_keys=True, default=str)}" if fields else name


def registered_name(registry: Registry[Any], built: object) -> str:
    return describe_entry(registry, built).partition(" ")[0]
