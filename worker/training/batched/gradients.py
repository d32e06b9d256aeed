"""Methods for the gradients of many workers at once, written into the rows of one tensor.

k  workers     b  samples of each     d  parameters
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from varangian.worker.data.samples import map_tensors
from varangian.worker.training.batched.pooled import Pooled, UnknownLayer
from varangian.worker.training.trainer import Trainer

Purpose: TypeAlias = tuple[str | int, ...]
"""Of the random numbers of one worker in one step."""

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class GradientMethod(Protocol):
    """A way to compute the gradients of many workers."""

    def __call__(
        self, parameters: Tensor, x: Any, y: Any, purposes: Sequence[Purpose], rows: Tensor, /
    ) -> None:
        """Write the gradient of each worker's mean loss into its row.

        Args:
            parameters: (d,) for all workers, or (k, d), on the device.
            x: inputs, with the workers along axis 0 of each tensor and the samples along axis 1.
            y: targets, in the same way.
            purposes: of what dropout draws, for each worker.
            rows: (k, d) on the device, whose values do not matter.

        Raises:
            Exception: of any kind, where it cannot be done for these samples.
        """
        ...


def choose_method(trainer: Trainer, seed: int) -> GradientMethod:
    """The fastest method for a model, by its layers.

    On a CPU convolutions of few samples at a time are faster than of many.
    """
    module = trainer.train()
    convolves = any(isinstance(part, CONVOLUTIONS) for part in module.modules())
    if convolves and trainer.device.type == "cpu":
        return InTurn(trainer)
    general = Vectorised(trainer)
    try:
        return PooledWhereShared(Pooled(trainer, module, seed), general)
    except UnknownLayer:
        return general


class InTurn:
    """One gradient after the other: anything that a model does is done as by a single worker."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(
        self, parameters: Tensor, x: Any, y: Any, purposes: Sequence[Purpose], rows: Tensor
    ) -> None:
        for place, purpose in enumerate(purposes):
            own = parameters if parameters.dim() == 1 else parameters[place]
            one_x, one_y = (map_tensors(part, lambda t, i=place: t[i]) for part in (x, y))  # type: ignore[misc]
            self._trainer.write_gradient(rows[place], own, one_x, one_y, "forward", *purpose)


class PooledWhereShared:
    """Pooled samples as long as workers have the same parameters, which is in the first local step."""

    def __init__(self, pooled: Pooled, general: Vectorised) -> None:
        self._pooled, self._general = pooled, general

    def __call__(
        self, parameters: Tensor, x: Any, y: Any, purposes: Sequence[Purpose], rows: Tensor
    ) -> None:
        method = self._pooled if parameters.dim() == 1 else self._general
        method(parameters, x, y, purposes, rows)


class Vectorised:
    """One forward pass that `torch.vmap` vectorises over the workers, and one backward pass.

    Every worker has its own copy of the parameters, which takes no memory where they are the same, so that
    one ordinary backward pass gives the gradient of each.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._names = [name for name, _ in trainer.layout.entries]
        self._shapes = [shape for _, shape in trainer.layout.entries]
        self._sizes = [torch.Size(shape).numel() for shape in self._shapes]

    def __call__(
        self, parameters: Tensor, x: Any, y: Any, purposes: Sequence[Purpose], rows: Tensor
    ) -> None:
        self._trainer.train()
        copies = [part.requires_grad_() for part in self._parts(parameters.expand_as(rows).detach())]
        # torch knows no batched form of its fused attention, only of the plain one.
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), plain, self._trainer.seeded("together"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            total = torch.vmap(self._loss)(copies, x, y).sum()
        found = torch.autograd.grad(total, copies, allow_unused=True, materialize_grads=True)
        for part, gradient in zip(self._parts(rows), found, strict=True):
            part.copy_(gradient)

    def _loss(self, values: Sequence[Tensor], x: Any, y: Any) -> Tensor:
        return self._trainer.loss(dict(zip(self._names, values, strict=True)), x, y)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """The parameters by themselves, (k, *shape) each, in the memory of the rows."""
        parts = rows.split(self._sizes, dim=1)
        return [part.view(len(rows), *shape) for part, shape in zip(parts, self._shapes, strict=True)]
