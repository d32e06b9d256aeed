"""Lightning: a Trainer as a worker of a server (`Worker`), or with a robust rule in its DDP (`Robust`).

`callbacks` has both. It uses `varangian.loops`, `varangian.torch` and Lightning: `pip install
'varangian[lightning]'`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varangian.lightning.callbacks import Robust as Robust
    from varangian.lightning.callbacks import Worker as Worker

__all__ = ["Robust", "Worker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("varangian.lightning.callbacks"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning":
            raise
        raise ModuleNotFoundError(
            "varangian.lightning needs it, and it is not installed: pip install 'varangian[lightning]'",
            name=error.name,
        ) from None
