"""Robust aggregation in Flower: `Robust(FedAvg(), aggregator="nnm+trimmed_mean", f=1)` is a strategy around another.

`strategy` has the strategy, `replies` reads what clients have sent, `memory` keeps what a strategy remembers. It
uses `varangian.federated` and Flower's message API, which `pip install 'varangian[flower]'` brings.
"""

import importlib
from typing import TYPE_CHECKING, Any

from varangian.federated.rounds import Round

if TYPE_CHECKING:
    from varangian.flower.strategy import Robust as Robust

__all__ = ["Robust", "Round"]


def __getattr__(name: str) -> Any:
    if name != "Robust":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("varangian.flower.strategy").Robust
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flwr":
            raise
        raise ModuleNotFoundError(
            "varangian.flower needs Flower 1.40 or newer, which is not installed: pip install 'varangian[flower]'",
            name=error.name,
        ) from None
