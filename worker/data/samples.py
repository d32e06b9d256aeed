"""Samples as tensors: one tensor, or a tuple or a mapping of several, with the samples along axis 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Samples: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""Inputs or targets. A model is called with a tensor, with the members of a tuple in order, or with those
of a mapping by name."""


FEW = 4
"""Members of a tuple or a mapping that a message names."""


def tensors(samples: Samples) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, with what follows the name of the whole in messages: nothing, `[0]` or `['ids']`."""
    if isinstance(samples, Tensor):
        yield "", samples
    else:
        items = samples.items() if isinstance(samples, dict) else enumerate(samples)
        yield from ((f"[{key!r}]", tensor) for key, tensor in items)


def map_tensors(samples: Samples, function: Callable[[Tensor], Tensor]) -> Samples:
    """The same structure with another tensor in each place."""
    if isinstance(samples, Tensor):
        return function(samples)
    if isinstance(samples, dict):
        return {key: function(tensor) for key, tensor in samples.items()}
    return tuple(function(tensor) for tensor in samples)


def count(samples: Samples) -> int:
    """The number of samples; of several tensors the shortest counts."""
    return min((len(tensor) if tensor.dim() else 0 for _, tensor in tensors(samples)), default=0)


def format_some(texts: list[str]) -> str:
    """The first entries of a list, for messages."""
    more = f", and {len(texts) - FEW} more" if len(texts) > FEW else ""
    return ", ".join(texts[:FEW]) + more


def shapes(samples: Samples) -> Any:
    """The shape of one sample: a tuple of sizes, or a tuple or a mapping of such tuples."""
    if isinstance(samples, Tensor):
        return tuple(samples.shape[1:])
    if isinstance(samples, dict):
        return {key: tuple(tensor.shape[1:]) for key, tensor in samples.items()}
    return tuple(tuple(tensor.shape[1:]) for tensor in samples)


def convert(value: Any) -> Samples:
    """Tensors on the CPU of tensors, arrays or lists, or of a tuple or a mapping of them.

    Double precision becomes single, and short integers become long ones; everything else stays.
    """
    if isinstance(value, Mapping):
        return {str(key): to_tensor(item) for key, item in value.items()}
    if isinstance(value, tuple) and any(hasattr(item, "__len__") for item in value):
        return tuple(map(to_tensor, value))
    return to_tensor(value)


def to_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor | list | tuple) and not hasattr(value, "__array__"):
        # Not tried: what only looks like a list, as a Dataset of torch, may go on for ever.
        raise TypeError(f"it is of type {type(value).__name__}")
    if not isinstance(value, Tensor | list | tuple):
        import numpy as np

        value = np.ascontiguousarray(value)  # torch takes no negative strides
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        value = value.astype(np.float64) if value.dtype == np.longdouble else value
        value = value if value.flags.writeable else value.copy()
        value = value.astype(np.int64) if value.dtype.kind == "u" and value.dtype.itemsize > 1 else value
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
        value = torch.stack([*value])
    tensor = torch.as_tensor(value).detach().cpu()
    return to_model_dtype(tensor)


def to_model_dtype(tensor: Tensor) -> Tensor:
    """Double precision as single, short integers as long ones."""
    if tensor.dtype in (torch.float64, torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor.long() if tensor.dtype in (torch.int8, torch.int16) else tensor
