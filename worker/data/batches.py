"""Batches of workers: which samples each takes in a round, for one worker or for several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from varangian.worker.seeds import generator, stream_seed

KEPT = 1 << 24
"""Indices of epochs that are kept for the rounds to come: 128 MiB."""


class BatchSampler:
    """Draws batches: each epoch is a new permutation of a worker's shard, cut into full batches.

    What is left over at the end of an epoch is not used in it. A batch is never larger than the shard. The
    samples are a function of the seed, the worker, the round and the local step.

    Args:
        shards: the samples of each worker, as indices.
        batch_size: samples of one worker in one step.
        seed: of the run.
    """

    def __init__(self, shards: Mapping[str, Tensor], batch_size: int, seed: int) -> None:
        self._shards, self._seed = shards, seed
        self._sizes = {name: min(batch_size, len(shard)) for name, shard in shards.items()}
        self._epochs: dict[tuple[str, int], tuple[int, Tensor]] = {}
        """By worker and local step: the number of an epoch, and its samples in order."""
        self._kept = 0

    @property
    def samples(self) -> Mapping[str, int]:
        """The number of samples of each worker."""
        return {name: len(shard) for name, shard in self._shards.items()}

    @property
    def sizes(self) -> Mapping[str, int]:
        """The number of samples in a batch of each worker."""
        return self._sizes

    def first(self, worker: str) -> Tensor:
        """(b,) some samples of a worker, for a trial."""
        return self._shards[worker][: self._sizes[worker]]

    def indices(self, worker: str, round: int, step: int = 0) -> Tensor:
        """(b,) the samples of a worker; must not be written to."""
        size = self._sizes[worker]
        epoch, batch = divmod(round, len(self._shards[worker]) // size)
        return self._epoch(worker, epoch, step)[batch * size : (batch + 1) * size]

    def stacked(self, workers: Sequence[str], round: int, step: int = 0) -> Tensor:
        """(k, b) the samples of workers whose batches have one size."""
        return torch.stack([self.indices(worker, round, step) for worker in workers])

    def _epoch(self, worker: str, epoch: int, step: int) -> Tensor:
        key = worker, step
        found = self._epochs.get(key)
        if found is not None and found[0] == epoch:
            return found[1]
        shard = self._shards[worker]
        seed = stream_seed(self._seed, "step", step) if step else self._seed
        order = torch.randperm(len(shard), generator=generator(seed, "batch", worker, epoch))
        samples = shard[order]
        self._kept += 0 if found else len(shard)
        if self._kept > KEPT:
            self._epochs.clear()
            self._kept = len(shard)
        self._epochs[key] = epoch, samples
        return samples
