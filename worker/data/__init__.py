"""Data sets by name. Importing this reads nothing and imports no reader."""

from varangian.worker.data.base import DATASETS, DataError, Dataset, Source
from varangian.worker.data.cifar10 import Cifar10
from varangian.worker.data.custom import Custom
from varangian.worker.data.digits import Digits
from varangian.worker.data.parquet import Parquet
from varangian.worker.data.synthetic import Synthetic

__all__ = [
    "DATASETS",
    "Cifar10",
    "Custom",
    "DataError",
    "Dataset",
    "Digits",
    "Parquet",
    "Source",
    "Synthetic",
]
