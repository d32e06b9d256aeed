"""The backends: all code that reads d columns, in C (`c`), Triton (`gpu`), numpy and torch.

Their functions are screen, gram, centred, combine and columnwise; `reference` defines what they return.
Only `gram`, `pipeline` and `streaming` of the aggregators, the store of rows and the compute thread of the
server import them.
"""

from varangian.aggregators.kernels.accumulate import GramAccumulator
from varangian.aggregators.kernels.dispatch import (
    BACKENDS,
    Backend,
    BackendRefused,
    after,
    backend_for,
    kernels_in_use,
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
    "kernels_in_use",
    "unscreened",
]
