"""Robust aggregation: n vectors in, one out, and who was believed. No networking in here.

>>> import torch
>>> from varangian.aggregators import Aggregator, Krum
>>> Aggregator(Krum(f=1))(torch.randn(7, 100)).vector.shape
torch.Size([100])

The rules take three shapes (`base`): a `Weighting` turns the Gram matrix into n weights, a `Mixing` turns
it into k combinations for the rule after it, a `Columnwise` rule reduces each coordinate.
"""

from varangian.aggregators.base import (
    MIXINGS,
    RULES,
    Aggregate,
    AggregationError,
    Columnwise,
    Mixing,
    Weighting,
)
from varangian.aggregators.gram import Gram
from varangian.aggregators.krum import Krum
from varangian.aggregators.pipeline import Aggregator
from varangian.aggregators.rows import Rows, RowsError

__all__ = [
    "MIXINGS",
    "RULES",
    "Aggregate",
    "AggregationError",
    "Aggregator",
    "Columnwise",
    "Gram",
    "Krum",
    "Mixing",
    "Rows",
    "RowsError",
    "Weighting",
]
