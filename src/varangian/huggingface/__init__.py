"""Hugging Face: a `transformers.Trainer` as a worker of a server.

`callback` has it. It uses `varangian.loops` and transformers: `pip install 'varangian[huggingface]'`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varangian.huggingface.callback import Worker as Worker

__all__ = ["Worker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("varangian.huggingface.callback"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise ModuleNotFoundError(
            "varangian.huggingface needs transformers, which is not installed: "
            "pip install 'varangian[huggingface]'",
            name=error.name,
        ) from None
