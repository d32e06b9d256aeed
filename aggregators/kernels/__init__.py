"""The verbs that read d columns: screen, gram, combine, columnwise. `reference` defines them."""

from varangian.aggregators.kernels.accumulate import GramAccumulator
from varangian.aggregators.kernels.dispatch import (
    BACKENDS,
    Backend,
    BackendRefused,
    after,
    backend_for,
    unscreened,
)
from varangian.aggregators.kernels.reference import NotFinite

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendRefused",
    "GramAccumulator",
    "NotFinite",
    "after",
    "backend_for",
    "unscreened",
]
