"""torchft: its DistributedDataParallel with a robust rule in the place of the manager's average.

`ddp` has it. It uses `varangian.torch` and torchft: `pip install 'varangian[torchft]'`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varangian.torchft.ddp import DistributedDataParallel as DistributedDataParallel

__all__ = ["DistributedDataParallel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("varangian.torchft.ddp"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchft":
            raise
        raise ModuleNotFoundError(
            "varangian.torchft needs torchft, which is not installed: pip install 'varangian[torchft]'",
            name=error.name,
        ) from None
