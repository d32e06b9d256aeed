"""CIFAR-10 from local parquet files."""

from __future__ import annotations

from dataclasses import dataclass

from varangian.worker.data.base import DATASETS, Dataset, check_limits
from varangian.worker.data.parquet import Columns, load_images

CLASSES = 10
FEATURES = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Of the training set, by channel, for pixels from 0 to 1."""


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 from local parquet files in the layouts of the Hugging Face hub.

    "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009). Decoded images are kept in
    the user's cache folder. Other images with labels are the data set `parquet`.
    """

    path: str
    """The folder with train-*.parquet and test-*.parquet (or train.parquet, or train/*.parquet, and so
    on), or the one above it."""
    train_limit: int | None = None
    """Use only the first training samples."""
    test_limit: int | None = None
    """Use only the first test samples."""
    image: str | None = None
    """The column of images; null is img, image or images."""
    label: str | None = None
    """The column of labels; null is label, labels or fine_label."""

    def __post_init__(self) -> None:
        check_limits(train_limit=self.train_limit, test_limit=self.test_limit)

    def load(self) -> Dataset:
        columns = Columns("cifar10", self.image, self.label, FEATURES, CLASSES)
        arrays = load_images(self.path, columns, self.train_limit, self.test_limit)
        shift, scale = (tuple(255 * value for value in values) for values in (MEAN, STD))
        return Dataset("cifar10", CLASSES, *arrays, shift, scale)
