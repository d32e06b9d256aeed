"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from varangian.worker.data.base import DATASETS, Dataset
from varangian.worker.data.cache import Rows, load_or_make, split_rows
from varangian.worker.seeds import generator

TEST_SHARE = 0.2
FILE = ("datasets", "data", "digits.csv.gz")
"""Below the package of scikit-learn."""


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits:
    """1797 handwritten digits of 8x8 pixels, which come with scikit-learn: nothing to download.

    One fifth of each class is held out, always the same samples. Pixels, 0 to 16, are divided by 6, about
    their standard deviation.
    """

    def load(self) -> Dataset:
        x, y = split_rows(load_or_make("digits", version("scikit-learn"), read_rows), (1, 8, 8))
        test = held_out_mask(y)
        return Dataset("digits", 10, x[~test], y[~test], x[test], y[test], scale=(6.0,))


def read_rows() -> Rows:
    """Labels and pixels (N, 65), from the file of scikit-learn: its import takes longer than many a run."""
    spec = find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        file = Path(place, *FILE)
        if file.is_file():
            found = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return np.roll(found, 1, axis=1)  # the label stands last
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([labels, pixels]).astype(np.uint8)


def held_out_mask(labels: Tensor) -> Tensor:
    """A mask that is true for one fifth of each class."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(0, "held out", label))
        mask[members[order[: round(TEST_SHARE * len(members))]]] = True
    return mask
