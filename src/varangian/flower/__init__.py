"""Robust aggregation in Flower: `Robust(FedAvg(), f=1)` is a strategy around another one.

`strategy` has it, `replies` reads what clients have sent, `memory` keeps what it remembers.
It uses `varangian.federated` and the message API of Flower: `pip install 'varangian[flower]'`.
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
            "varangian.flower needs Flower, which is not installed: pip install 'varangian[flower]'",
            name=error.name,
        ) from None
