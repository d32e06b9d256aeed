"""Robust reduction inside `torch.distributed`, without a server: for `DistributedDataParallel`.

`robust(model, aggregator="nnm+trimmed_mean", f=1)` puts a robust rule in the place of the average of
gradients. It imports `varangian.aggregators` and nothing else of the package; no other room imports it.
"""

from varangian.torch.ddp import robust, robust_hook
from varangian.torch.reduction import Reduction
from varangian.torch.steps import Step, SuspectRank

__all__ = ["Reduction", "Step", "SuspectRank", "robust", "robust_hook"]
