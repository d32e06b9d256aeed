"""Pooled gradients: the samples of all workers as one batch, with a gradient of parameters for each worker.

k  workers     b  samples of each     d  parameters

As long as workers have the same parameters, and layers look at each sample by itself, outputs and their
gradients are those of one ordinary pass over k b samples. Only the last product of each layer, which makes
the gradient of its parameters, is one for each worker, and is written straight into that worker's row.
"Efficient Per-Example Gradient Computations" (Goodfellow, 2015) does so for single samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from varangian.worker.seeds import generator
from varangian.worker.training.losses import CrossEntropy, is_built_in_loss
from varangian.worker.training.models import Residual
from varangian.worker.training.trainer import Trainer


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass: parameters, and what becomes of their gradients."""

    workers: int
    weights: Mapping[str, Tensor]
    """Parameters by name, the same for all workers."""
    rows: Mapping[str, Tensor]
    """(k, *shape) by name: where the gradients go."""
    generators: Sequence[torch.Generator]
    """The generator that dropout draws from, for each worker."""


Layer: TypeAlias = Callable[[Tensor, Pass], Tensor]
"""From inputs (k b, ...) to outputs (k b, ...)."""

BY_SAMPLE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.Hardtanh),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""Layers without parameters that look at each sample by itself."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Functions of the user around a layer, which torch keeps there."""


class UnknownLayer(Exception):
    """A layer that may look at several samples at once, or have parameters in some way of its own."""


class Pooled:
    """The gradients of all workers from one forward and one backward pass over all their samples.

    Args:
        trainer: of the model.
        module: the model.
        seed: of the run.

    Raises:
        UnknownLayer: the model has layers that are not known here.
    """

    def __init__(self, trainer: Trainer, module: nn.Module, seed: int) -> None:
        self._trainer, self._seed = trainer, seed
        self._entries = trainer.layout.entries
        self._sizes = [torch.Size(shape).numel() for _, shape in self._entries]
        self._built_in = is_built_in_loss(trainer.objective.loss)
        self._drops = any(isinstance(part, nn.Dropout) for part in module.modules())
        self._model = layer_of(module, "", {name for name, _ in self._entries})

    def __call__(
        self, parameters: Tensor, x: Any, y: Any, purposes: Sequence[tuple[str | int, ...]], rows: Tensor
    ) -> None:
        workers = len(purposes)
        rows.zero_()  # of parameters that nothing depends on
        this = Pass(
            workers,
            {name: part.requires_grad_() for name, part in self._parts(parameters.detach())},
            dict(self._parts(rows)),
            [generator(self._seed, "forward", *purpose) for purpose in purposes] if self._drops else (),
        )
        with torch.enable_grad():
            outputs = self._model(x.flatten(0, 1).float(), this)
            self._total(outputs, y, workers).backward()

    def _parts(self, flat: Tensor) -> list[tuple[str, Tensor]]:
        """Parameters by name, in the memory of (d,) or (k, d)."""
        parts = flat.split(self._sizes, dim=-1)
        return [
            (name, part.view(*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self._entries, parts, strict=True)
        ]

    def _total(self, outputs: Tensor, y: Tensor, workers: int) -> Tensor:
        """The sum of the workers' mean losses."""
        loss = self._trainer.objective.loss
        if self._built_in and not (isinstance(loss, CrossEntropy) and (y.dim() > 2 or int(y.min()) < 0)):
            # A mean over all is the mean of means, where each worker has as many places that count.
            return workers * loss(outputs, y.flatten(0, 1))
        each = outputs.unflatten(0, (workers, -1))
        return torch.stack([loss(mine, own) for mine, own in zip(each, y, strict=True)]).sum()


def layer_of(module: nn.Module, path: str, left: set[str]) -> Layer:
    """A layer for a pass of all workers.

    Args:
        module: of the model.
        path: its name there, with a dot at the end.
        left: names of parameters that no layer has taken yet.

    Raises:
        UnknownLayer: it is of another type than those known here, has hooks, or is there twice.
    """
    kind = type(module)
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise UnknownLayer(f"{path or 'the model'} has hooks")
    if kind is nn.Sequential:
        layers = [layer_of(part, f"{path}{name}.", left) for name, part in module.named_children()]
        return lambda x, this: _in_order(layers, x, this)
    if kind is Residual:
        body, shortcut = (layer_of(part, f"{path}{name}.", left) for name, part in module.named_children())
        return lambda x, this: (body(x, this) + shortcut(x, this)).relu()
    if kind in BY_SAMPLE:
        if getattr(module, "inplace", False) or getattr(module, "return_indices", False):
            raise UnknownLayer(f"{path} writes to what it is given")
        return lambda x, this: module(x)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return lambda x, this: module(x)
    if isinstance(module, nn.Dropout) and kind is nn.Dropout and not module.inplace:
        return lambda x, this: _dropped(x, module.p, this)
    names = {f"{path}{name}" for name, _ in module.named_parameters(recurse=False)}
    if not names <= left:
        raise UnknownLayer(f"{path} has parameters that do not train, or is there twice")
    left -= names
    weight, bias = (f"{path}{name}" if f"{path}{name}" in names else "" for name in ("weight", "bias"))
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        return lambda x, this: _apply(_Linear, x, this, weight, bias)
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d and module.padding_mode == "zeros":
        settings = (module.stride, module.padding, module.dilation, module.groups)
        if not isinstance(module.padding, str):
            return lambda x, this: _apply(_Convolution, x, this, weight, bias, settings)
    if isinstance(module, nn.GroupNorm) and kind is nn.GroupNorm and weight:
        groups, eps = module.num_groups, module.eps
        return lambda x, this: _apply(
            _Scale, functional.group_norm(x, groups, eps=eps), this, weight, bias, 1
        )
    if isinstance(module, nn.LayerNorm) and kind is nn.LayerNorm and weight:
        shape, eps = module.normalized_shape, module.eps
        return lambda x, this: _apply(
            _Scale, functional.layer_norm(x, shape, eps=eps), this, weight, bias, x.dim() - len(shape)
        )
    raise UnknownLayer(f"{path or 'the model'} is {kind.__name__}")


def _in_order(layers: Sequence[Layer], x: Tensor, this: Pass) -> Tensor:
    for layer in layers:
        x = layer(x, this)
    return x


def _apply(function: type[Any], x: Tensor, this: Pass, weight: str, bias: str, *settings: Any) -> Tensor:
    """Apply a function with parameters whose gradients go into rows."""
    found: Tensor = function.apply(
        x,
        this.weights[weight],
        this.weights[bias] if bias else None,
        this.rows[weight],
        this.rows[bias] if bias else None,
        *settings,
    )
    return found


def _dropped(x: Tensor, p: float, this: Pass) -> Tensor:
    """Dropout, with the masks that each worker draws by itself."""
    if p == 0:
        return x
    kept = torch.empty_like(x, memory_format=torch.contiguous_format)
    for mine, random in zip(kept.chunk(this.workers), this.generators, strict=True):
        mine.bernoulli_(1 - p, generator=random)
    return x * (kept / (1 - p) if p < 1 else kept)


class _Linear(torch.autograd.Function):
    """A linear layer."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_rows: Tensor,
        bias_rows: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = weight_rows, bias_rows
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = grad_outputs
        x, weight = ctx.saved_tensors
        weight_rows, bias_rows = ctx.rows
        workers = len(weight_rows)
        outer = slope.reshape(workers, -1, slope.shape[-1])
        torch.bmm(outer.transpose(1, 2), x.reshape(workers, -1, x.shape[-1]), out=weight_rows)
        if bias_rows is not None:
            torch.sum(outer, 1, out=bias_rows)
        return (slope @ weight if ctx.needs_input_grad[0] else None), None, None, None, None


class _Convolution(torch.autograd.Function):
    """A convolution of images; the gradients of its kernels are computed worker by worker."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_rows: Tensor,
        bias_rows: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.settings = (weight_rows, bias_rows), settings
        return functional.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = grad_outputs
        x, weight = ctx.saved_tensors
        weight_rows, bias_rows = ctx.rows
        stride, padding, dilation, groups = ctx.settings

        def slopes(outer: Tensor, inner: Tensor, wanted: list[bool]) -> list[Tensor]:
            return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
                outer, inner, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
            )

        workers = len(weight_rows)
        for row, outer, inner in zip(weight_rows, slope.chunk(workers), x.chunk(workers), strict=True):
            row.copy_(slopes(outer, inner, [False, True, False])[1])
        if bias_rows is not None:
            torch.sum(slope.unflatten(0, (workers, -1)), (1, 3, 4), out=bias_rows)
        first = slopes(slope, x, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        return first, None, None, None, None, None


class _Scale(torch.autograd.Function):
    """The scale and shift after a normalisation, along the axes from `axis` on that the parameters have."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_rows: Tensor,
        bias_rows: Tensor | None,
        axis: int,
    ) -> Tensor:
        after = [1] * (x.dim() - axis - weight.dim())
        spread = weight.view(*weight.shape, *after)
        ctx.save_for_backward(x, spread)
        ctx.rows, ctx.axis = (weight_rows, bias_rows), axis
        scaled = x * spread
        return scaled if bias is None else scaled + bias.view(*bias.shape, *after)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = grad_outputs
        x, spread = ctx.saved_tensors
        weight_rows, bias_rows = ctx.rows
        shape = (len(weight_rows), -1, *weight_rows.shape[1:])
        for rows, part in ((weight_rows, slope * x), (bias_rows, slope)):
            if rows is not None:
                axes = [*range(1, ctx.axis), *range(ctx.axis + rows.dim() - 1, part.dim())]
                own = part.sum(axes) if axes else part
                torch.sum(own.reshape(shape), 1, out=rows)
        return (slope * spread if ctx.needs_input_grad[0] else None), None, None, None, None, None
