"""Robust aggregation in NVFlare: `FedAvgRecipe(aggregator=Robust("nnm+trimmed_mean", f=1), ...)`.

`aggregator` has it, `jobs` what a job has to be told. It uses `varangian.federated`, and a class of
NVFlare: `pip install 'varangian[nvflare]'`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from varangian.federated.rounds import Round
from varangian.nvflare.jobs import use_installed

if TYPE_CHECKING:
    from varangian.nvflare.aggregator import Robust as Robust

__all__ = ["Robust", "Round", "use_installed"]


def __getattr__(name: str) -> Any:
    if name != "Robust":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("varangian.nvflare.aggregator").Robust
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nvflare":
            raise
        raise ModuleNotFoundError(
            "varangian.nvflare needs NVFlare, which is not installed: pip install 'varangian[nvflare]'",
            name=error.name,
        ) from None
