"""The validation split: training samples that are held out of training, to choose settings by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from varangian.worker.data.base import DataError, Dataset
from varangian.worker.data.samples import map_tensors
from varangian.worker.seeds import generator


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with a share of its training samples held out as validation samples.

    Every process of a run draws the same ones. Where samples have classes, the share is taken of each.

    Raises:
        DataError: one of the two parts would be empty.
    """
    chosen = choose_samples(dataset.labels, dataset.size, share, seed)
    held, rest = chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
    if not len(held) or not len(rest):
        found = f"{share:g} of {dataset.size} training samples in {dataset.name}, which is {len(held)}"
        raise DataError(
            f"`evaluate.validation` should leave samples for training and for validation. Found {found}."
        )
    return replace(
        dataset,
        train_x=map_tensors(dataset.train_x, lambda tensor: tensor[rest]),
        train_y=map_tensors(dataset.train_y, lambda tensor: tensor[rest]),
        validation_x=map_tensors(dataset.train_x, lambda tensor: tensor[held]),
        validation_y=map_tensors(dataset.train_y, lambda tensor: tensor[held]),
    )


def choose_samples(labels: Tensor | None, size: int, share: float, seed: int) -> Tensor:
    """A mask (size,) of the validation samples."""
    mask = torch.zeros(size, dtype=torch.bool)
    labels = torch.zeros(size, dtype=torch.int64) if labels is None else labels
    for number, label in enumerate(labels.unique().tolist()):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "validation", number))
        mask[members[order[: round(share * len(members))]]] = True
    return mask
