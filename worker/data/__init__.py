"""Data sets by name, and partitions of their samples among workers.

Importing this reads no data and imports no reader. `varangian.worker.training` and the configuration
import it.
"""

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
