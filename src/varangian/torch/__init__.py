"""Robust reduction inside `torch.distributed`, without a server: for DDP and fully sharded models.

`robust(model, aggregator="nnm+trimmed_mean", f=1)` puts a robust rule in the place of the average of
gradients of `DistributedDataParallel`, `robust_fsdp(model, mesh["replicas"], ...)` in that of the average
over replicas of a model with `fully_shard`. It imports `varangian.aggregators` and nothing else of the
package; no other room imports it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from varangian.torch.ddp import robust, robust_hook
from varangian.torch.reduction import Reduction
from varangian.torch.steps import Step, SuspectRank

if TYPE_CHECKING:
    from varangian.torch.fsdp import robust_fsdp as robust_fsdp

__all__ = ["Reduction", "Step", "SuspectRank", "robust", "robust_fsdp", "robust_hook"]


def __getattr__(name: str) -> Any:
    if name != "robust_fsdp":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("varangian.torch.fsdp").robust_fsdp  # whose imports take seconds
