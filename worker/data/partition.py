"""Partitions of training samples among workers: pure functions of labels, worker count and seed.

Every process computes the whole partition for itself and takes its own share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from varangian.own_classes import OwnClasses, OwnFunction, is_own, named
from varangian.plugins import InputError, guard
from varangian.registry import Registry
from varangian.worker.data.base import Dataset
from varangian.worker.seeds import generator, stream_seed


class PartitionError(InputError):
    """A partition that cannot be made of this data."""


class Partition(Protocol):
    """A way to deal samples to workers."""

    by_label: ClassVar[bool]
    """Whether it goes by the classes of the samples; otherwise by their number alone."""

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        """Ascending indices for each worker: none empty, together all; disjoint, except for `shared`.

        Raises:
            PartitionError: when there are too few samples.
        """
        ...


class FunctionPartition(OwnFunction):
    """A partition that is a function of the user: called with (labels, workers, seed), as `split`.

    Its other parameters are its settings. Where samples have no classes, the labels are zeros.
    """

    function_given: ClassVar[tuple[str, ...]] = ("labels", "workers", "seed")
    by_label: ClassVar[bool] = False

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        shards: list[Tensor] = self.call_function(labels, workers, seed)
        return shards


def _lacks(cls: type[Any]) -> str:
    missing = list[str]()
    if not hasattr(cls, "split"):
        missing.append("`split(labels, workers, seed)`, which returns the indices of each worker's samples")
    if not isinstance(getattr(cls, "by_label", None), bool):
        missing.append("`by_label: ClassVar[bool]`, whether it goes by the classes of the samples")
    return f"should be as a partition. It lacks {'; and '.join(missing)}" if missing else ""


PARTITIONS: Registry[Partition] = Registry("partition", OwnClasses(_lacks, FunctionPartition))


@PARTITIONS.register("shared")
@dataclass(frozen=True)
class Shared:
    """Shared data: every worker draws its own batches from all samples, as in a data centre."""

    by_label: ClassVar[bool] = False

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        check_enough(labels, 1)
        return [torch.arange(len(labels)) for _ in range(workers)]


@PARTITIONS.register("private")
@dataclass(frozen=True)
class Private(Shared):
    """Private data: every worker draws from all samples that its own machine holds.

    For sites that keep their data, so the data of workers is not compared. `shared` does the same, with a
    warning where data differs.
    """


@PARTITIONS.register("iid")
@dataclass(frozen=True)
class Iid:
    """IID: samples are shuffled and dealt in equal parts, so all workers have the same distribution."""

    by_label: ClassVar[bool] = False

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        check_enough(labels, workers)
        order = torch.randperm(len(labels), generator=generator(seed, "partition"))
        return sort_ascending(order.tensor_split(workers))


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet:
    """Dirichlet label skew: each class is dealt in Dirichlet(alpha) proportions; smaller is more skewed.

    "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification" (Hsu et
    al., 2019), but with proportions of workers within a class, not of classes within a worker, so that
    every sample is used once. A worker that would get nothing takes one sample from the one with most.
    """

    by_label: ClassVar[bool] = True

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"`alpha` should be a positive number. Found {self.alpha}.")

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        check_enough(labels, workers)
        owner = torch.empty(len(labels), dtype=torch.int64)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            order = torch.randperm(len(members), generator=generator(seed, "partition", label))
            owner[members[order]] = self._owners(
                len(members), workers, stream_seed(seed, "proportions", label)
            )
        shards = [(owner == worker).nonzero().flatten() for worker in range(workers)]
        return sort_ascending(fill_empty(shards))

    def _owners(self, count: int, workers: int, seed: int) -> Tensor:
        """A worker for each of `count` samples, ascending."""
        proportions = np.random.default_rng(seed).dirichlet(np.full(workers, self.alpha))
        ends = np.rint(np.cumsum(proportions) * count).astype(np.int64)
        return torch.from_numpy(np.searchsorted(ends[:-1], np.arange(count), side="right"))


@PARTITIONS.register("shards")
@dataclass(frozen=True)
class Shards:
    """Shards: samples sorted by class are cut into equal shards, and each worker gets a few of them.

    "Communication-Efficient Learning of Deep Networks from Decentralized Data" (McMahan et al., 2017).
    """

    by_label: ClassVar[bool] = True

    per_worker: int = 2

    def __post_init__(self) -> None:
        if self.per_worker < 1:
            raise ValueError(f"`per_worker` should be at least 1. Found {self.per_worker}.")

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        count = workers * self.per_worker
        check_enough(labels, count)
        shards = labels.argsort(stable=True).tensor_split(count)
        dealt = torch.randperm(count, generator=generator(seed, "partition")).view(workers, -1).tolist()
        return sort_ascending([torch.cat([shards[i] for i in hand]) for hand in dealt])


@PARTITIONS.register("halves")
@dataclass(frozen=True)
class Halves:
    """Halves: the first half of the workers holds the first half of the classes, the others the rest.

    The halves are those of `availability: alternating`, so that classes come and go with the workers. Each
    half is dealt in equal parts.
    """

    by_label: ClassVar[bool] = True

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        classes = labels.unique()
        if workers < 2 or len(classes) < 2:
            raise PartitionError(
                "There should be at least two workers and two classes, for two halves. "
                f"Found {workers} and {len(classes)}."
            )
        middle = len(classes) // 2
        return [
            *self._dealt(labels, classes[:middle], workers // 2, seed),
            *self._dealt(labels, classes[middle:], workers - workers // 2, seed),
        ]

    def _dealt(self, labels: Tensor, classes: Tensor, workers: int, seed: int) -> list[Tensor]:
        members = torch.isin(labels, classes).nonzero().flatten()
        check_enough(members, workers)
        order = torch.randperm(len(members), generator=generator(seed, "partition", int(classes[0])))
        return sort_ascending(members[order].tensor_split(workers))


@PARTITIONS.register("extreme")
@dataclass(frozen=True)
class Extreme:
    """Extreme label skew: samples sorted by class are cut into equal parts, one for each worker in order.

    The pathological case of "Communication-Efficient Learning of Deep Networks from Decentralized Data"
    (McMahan et al., 2017), with one shard for each worker; ByzFL's `extreme_niid`.
    """

    by_label: ClassVar[bool] = True

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        check_enough(labels, workers)
        return sort_ascending(labels.argsort(stable=True).tensor_split(workers))


@PARTITIONS.register("gamma_similarity")
@dataclass(frozen=True)
class GammaSimilarity:
    """Gamma similarity: a share gamma of the samples is dealt at random, the others sorted by class.

    "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (Karimireddy et al., 2020), where it
    is s % of similar data; ByzFL's `gamma_similarity_niid`. gamma = 1 is `iid`, gamma = 0 is `extreme`.
    Both parts are cut into equal parts, one for each worker.
    """

    by_label: ClassVar[bool] = True

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"`gamma` should be from 0 to 1. Found {self.gamma}.")

    def split(self, labels: Tensor, workers: int, seed: int) -> list[Tensor]:
        check_enough(labels, workers)
        order = torch.randperm(len(labels), generator=generator(seed, "partition"))
        alike, apart = order.tensor_split([int(self.gamma * len(labels))])
        apart = apart.sort().values
        apart = apart[labels[apart].argsort(stable=True)]
        parts = zip(alike.tensor_split(workers), apart.tensor_split(workers), strict=True)
        return sort_ascending(fill_empty([torch.cat(pair) for pair in parts]))


def deal_samples(partition: Partition, dataset: Dataset, workers: int, seed: int) -> list[Tensor]:
    """The samples of each worker, as indices; never none.

    Raises:
        PartitionError: when there are too few samples, or no classes to go by.
    """
    labels = dataset.labels
    if labels is None and partition.by_label:
        name = PARTITIONS.name(partition)
        raise PartitionError(
            f"`partition` {name} deals samples by their class, and {dataset.name} has no class for each "
            "sample. Choose partition=iid or partition=shared."
        )
    labels = torch.zeros(dataset.size, dtype=torch.int64) if labels is None else labels
    if not is_own(partition):
        return partition.split(labels, workers, seed)
    name = named(partition)
    with guard(f"`partition` {name!r}", "", name, PartitionError):
        return [*_checked(name, partition.split(labels.clone(), workers, seed), workers, len(labels))]


def _checked(name: str, shards: Any, workers: int, size: int) -> Iterator[Tensor]:
    """The samples of each worker from a partition of the user: ascending indices, never none.

    Raises:
        PartitionError: they are not as many lists of indices.
    """
    here = f"`partition` {name!r} should return"
    if not isinstance(shards, list | tuple) or len(shards) != workers:
        found = f"{len(shards)} of them" if isinstance(shards, list | tuple) else type(shards).__name__
        raise PartitionError(f"{here} a list of indices for each of {workers} workers. Found {found}.")
    for worker, shard in enumerate(shards):
        indices = torch.as_tensor(shard)
        if indices.dim() != 1 or indices.is_floating_point() or not len(indices):
            found = f"{indices.dtype} of shape {list(indices.shape)}"
            raise PartitionError(f"{here} at least one index for each worker. Found {found} for {worker}.")
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= size:
            raise PartitionError(f"{here} indices from 0 to {size - 1}. Found {low} to {high}.")
        yield indices.long().sort().values


def sort_ascending(shards: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [shard.sort().values for shard in shards]


def fill_empty(shards: list[Tensor]) -> list[Tensor]:
    """Move single samples from the largest shards until none is empty."""
    shards = [*shards]
    for worker, shard in enumerate(shards):
        if len(shard) == 0:
            largest = max(range(len(shards)), key=lambda other: len(shards[other]))
            shards[worker], shards[largest] = shards[largest][:1], shards[largest][1:]
    return shards


def check_enough(labels: Tensor, parts: int) -> None:
    if len(labels) < parts:
        raise PartitionError(
            f"There should be at least {parts} training samples, one for each part. Found {len(labels)}."
        )
