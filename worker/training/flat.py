"""Conversion between a model and one flat float32 vector.

Only parameters that train are in the vector, in the order of `named_parameters`; a shared one once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from varangian.plugins import InputError
from varangian.protos.layout import Layout

LARGEST = torch.finfo(torch.bfloat16).max
"""The largest magnitude that every format of the wire and of the server's rows can hold."""


DIVERGED = (
    "Every number of a gradient should be finite. Found NaN or infinity: the model has diverged, or the "
    "data has bad samples. Lower `optimizer.lr`, or mend the data."
)


class ModelError(InputError):
    """A model that cannot be trained by this server, or cannot take this data."""


class DivergedError(InputError):
    """A vector that must not be sent: the server takes such a vector as proof of a faulty worker."""


def check_finite(vector: Tensor) -> None:
    """See that every number of a vector can be sent.

    Raises:
        DivergedError: a number is NaN or infinite, or too large for bfloat16.
    """
    if vector.numel() and not -LARGEST <= float(vector.amin()) <= float(vector.amax()) <= LARGEST:
        raise DivergedError(DIVERGED)


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def layout_of(module: nn.Module) -> Layout:
    """Names and shapes of the parameters.

    Raises:
        ModelError: when there are none, or one is not float32.
    """
    parameters = trainable(module)
    if not parameters:
        raise ModelError("The model should have parameters that train. Found none.")
    for name, p in parameters:
        if p.dtype != torch.float32:
            raise ModelError(
                f"Every parameter of the model should be float32. Found {name!r}: {p.dtype}. Return "
                "model.float()."
            )
    return Layout(tuple((name, tuple(p.shape)) for name, p in parameters))


def check_memory_apart(module: nn.Module) -> None:
    """See that no two parameters, nor two numbers of one, share memory: one would overwrite the other.

    Raises:
        ModelError: with their names.
    """
    ends = list[tuple[int, int, str]]()
    for name, p in trainable(module):
        start = p.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)) + 1
        if reach < p.numel():
            raise ModelError(
                f"Every number of a parameter should have memory of its own. Found {name!r} expanded. Make "
                "a copy of it, with clone()."
            )
        if start and p.numel():
            ends.append((start, start + reach * p.element_size(), name))
    ends.sort()
    for (_, end, name), (start, _, other) in pairwise(ends):
        if start < end:
            raise ModelError(
                f"Parameters {name!r} and {other!r} should not share memory. To tie them use one parameter "
                "under both names, as `self.b.weight = self.a.weight`."
            )


def flatten(module: nn.Module) -> Tensor:
    """A copy of the parameters, (d,) on the CPU."""
    return join([p.detach() for _, p in trainable(module)]).cpu()


def join(parts: list[Tensor]) -> Tensor:
    """Tensors of any shape as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])


@torch.no_grad()
def load(module: nn.Module, flat: Tensor) -> None:
    """Set the parameters from (d,).

    Copies: parameters that were views into `flat` would be aligned differently from model to model, and
    vectorised code may then sum in another order.
    """
    fill([p for _, p in trainable(module)], flat)


@torch.no_grad()
def fill(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """The same for the parameters of a model that are known already: to list them takes a while."""
    sizes = [p.numel() for p in parameters]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"The model takes a vector of {sum(sizes)} numbers. Found {list(flat.shape)}.")
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.copy_(part.view_as(parameter))


def check_model(module: nn.Module, outputs: Callable[[], object]) -> None:
    """Try a model in training mode, and leave it as it was.

    A model that keeps statistics is refused: only parameters travel, so every worker would have its own.

    Args:
        module: the model.
        outputs: passes a batch through it.

    Raises:
        ModelError: when it has buffers that a forward pass in training mode changes.
    """
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    module.train()
    with torch.no_grad():
        outputs()
    after = dict(module.named_buffers())
    changed = [name for name, tensor in before.items() if not same_values(tensor, after.get(name))]
    if changed:
        raise ModelError(
            "Training should change nothing but the parameters of the model. Found buffers that change: "
            f"{', '.join(changed[:4])}. Set buffers=robust, which sends them along and takes their median, "
            "or use GroupNorm, or BatchNorm with track_running_stats=False."
        )


def same_values(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
