"""The memory of a strategy of Flower between rounds, such as moments of FedAdam, as tensors by name."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor


def tensors_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def record_of(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def remembered(strategy: Strategy) -> dict[str, Any]:
    """What `recalled` puts back: that of its own `state_dict`, or every attribute made of arrays."""
    if hasattr(strategy, "state_dict"):
        return {"own": strategy.state_dict()}
    found: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, ArrayRecord):
            arrays = {key: array.numpy() for key, array in value.items()}
            found[name] = {"kind": "record", "arrays": tensors_of(arrays)}
        elif isinstance(value, np.ndarray):
            found[name] = {"kind": "array", "arrays": tensors_of({"0": value})}
        elif _of_arrays(value):
            several = cast("Mapping[str, Any] | list[Any]", value)
            named = (
                several if isinstance(several, Mapping) else {str(i): one for i, one in enumerate(several)}
            )
            kind = "mapping" if isinstance(several, Mapping) else "list"
            found[name] = {"kind": kind, "arrays": tensors_of(named)}
    return {"attributes": found}


def _of_arrays(value: object) -> bool:
    if isinstance(value, Mapping):
        named = cast("Mapping[object, object]", value)
        keys, values = [*named.keys()], [*named.values()]
    elif isinstance(value, list):
        keys, values = [""], [*cast("list[object]", value)]
    else:
        return False
    return (
        bool(values)
        and all(isinstance(key, str) for key in keys)
        and all(isinstance(one, np.ndarray | np.generic) for one in values)
    )


def recalled(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Put back what `remembered` gave.

    Raises:
        ValueError: the strategy is of another kind.
    """
    if "own" in state:
        if not hasattr(strategy, "load_state_dict"):
            raise ValueError(
                f"state: is of a strategy with load_state_dict. Found {type(strategy).__name__} without."
            )
        strategy.load_state_dict(state["own"])
        return
    for name, kept in state["attributes"].items():
        if name not in vars(strategy):
            raise ValueError(
                f"state: is of a strategy with the attribute {name!r}. Found {type(strategy).__name__}."
            )
        arrays = arrays_of(kept["arrays"])
        value: Any = arrays
        if kept["kind"] == "record":
            value = record_of(arrays)
        elif kept["kind"] == "list":
            value = [*arrays.values()]
        elif kept["kind"] == "array":
            value = arrays["0"]
        setattr(strategy, name, value)
