"""A user's model as one float32 vector: its layout, its parameters and its gradients.

The vector has the parameters that train at the time of `connect`, in the order of `named_parameters`, a
tied one once. They may have any real floating-point type and lie on any device: the server has float32.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from varangian.protos.layout import Layout, LayoutError
from varangian.worker.training.buffers.vector import ModelBuffers
from varangian.worker.training.flat import ModelError, check_finite, check_memory_apart, trainable
from varangian.worker.transport.client import ClientError

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of parameters; the first is that of the vector."""
COMPILED = "_orig_mod"
"""The name under which a module of `torch.compile` has the plain one."""
SHARDED = ("FullyShardedDataParallel", "DTensor", "FlatParameter")
"""Types of modules and of parameters of which each process has only a part."""
SHOWN = 4
"""Names in a sentence."""


class ModelVector:
    """The parameters of a model that train, as a vector.

    Args:
        model: the module; one of `torch.compile`, DataParallel or DistributedDataParallel counts as that in
            it.

    Raises:
        ClientError: it cannot be trained over a server.
    """

    def __init__(self, model: object) -> None:
        if not isinstance(model, nn.Module):
            raise ClientError(f"`model` should be a torch.nn.Module. Found {type(model).__name__}.")
        module = unwrapped(model)
        found = trainable(module)
        if not found:
            raise ClientError("`model` should have parameters that train. Found none with requires_grad.")
        for name, parameter in found:
            check_parameter(name, parameter)
        check_whole(module)
        try:
            check_memory_apart(module)
            self.layout = Layout(tuple((plain_name(name), tuple(p.shape)) for name, p in found))
        except (ModelError, LayoutError) as error:
            raise ClientError(str(error)) from None
        self._buffers: ModelBuffers | None = None
        self.with_buffers: Layout | None = None
        """The layout with the buffers behind the parameters; None for a model without, or with some that
        cannot travel."""
        self.carries = False
        """Whether the server takes buffers with each vector."""
        with suppress(ModelError, LayoutError):
            self._buffers = ModelBuffers(module, plain_name)
            if self._buffers.numel:
                self.with_buffers = Layout((*self.layout.entries, *self._buffers.entries))
        self._module = module
        self._names = [plain_name(name) for name, _ in found]
        self.parameters = [parameter for _, parameter in found]
        self._places: list[tuple[int, int]] = []
        at = 0
        for size in self.layout.sizes:
            self._places.append((at, at + size))
            at += size

    @property
    def device(self) -> torch.device:
        """The device of all parameters, or the CPU where there are several."""
        devices = {parameter.device for parameter in self.parameters}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    def take(self, pulled: Tensor) -> None:
        """Copy what the server has sent, (d,) or (d + b,) float32, into the parameters and buffers.

        Raises:
            ClientError: the model has others than at `connect`.
        """
        self._find_parameters()
        d = self.layout.numel
        self.carries = pulled.numel() > d
        self.load(pulled[:d])
        if self.carries:
            self.own_buffers.write(pulled[d:])

    def _find_parameters(self) -> None:
        """Take up parameters that others have replaced, as `load_state_dict(assign=True)` does."""
        now = {plain_name(name): parameter for name, parameter in self._module.named_parameters()}
        for place, (name, shape) in enumerate(self.layout.entries):
            found = now.get(name)
            if found is None or tuple(found.shape) != shape:
                what = "none" if found is None else f"the shape {tuple(found.shape)}"
                raise ClientError(
                    f"`model` should have parameter {name!r} of shape {shape} as at connect(). Found "
                    f"{what}: connect again after a change of the model."
                )
            self.parameters[place] = found

    @property
    def own_buffers(self) -> ModelBuffers:
        """The buffers of a model that has some."""
        assert self._buffers is not None
        return self._buffers

    def completed(self, flat: Tensor) -> Tensor:
        """A vector (d,) on the CPU with the buffers behind it, where the server takes them.

        Raises:
            ModelError: the buffers are others than before.
            DivergedError: a number in them is not finite.
        """
        if not self.carries:
            return flat
        buffers = self.own_buffers.read().cpu()
        check_finite(buffers)
        return torch.cat([flat, buffers])

    @torch.no_grad()
    def load(self, flat: Tensor) -> None:
        """Copy (d,) float32 into the parameters, rounded where their type is narrower."""
        flat = flat.to(self.device)
        for parameter, (start, stop) in zip(self.parameters, self._places, strict=True):
            parameter.copy_(flat[start:stop].view(parameter.shape))

    @torch.no_grad()
    def flat(self) -> Tensor:
        """The parameters as (d,) float32 on the device of the model, a copy."""
        flat = torch.empty(self.layout.numel, dtype=torch.float32, device=self.device)
        for parameter, (start, stop) in zip(self.parameters, self._places, strict=True):
            flat[start:stop].copy_(parameter.reshape(-1))
        return flat

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def gradient(self) -> tuple[Tensor, tuple[str, ...]]:
        """The gradients, (d,) float32 on the device of the model, a copy; and names of unused parameters.

        A parameter without a gradient is unused, and has zeros.

        Raises:
            ClientError: no parameter has a gradient, or the model has others than at `connect`.
        """
        self._find_parameters()
        flat = torch.empty(self.layout.numel, dtype=torch.float32, device=self.device)
        unused = list[str]()
        for name, parameter, (start, stop) in zip(self._names, self.parameters, self._places, strict=True):
            gradient = parameter.grad
            if gradient is None:
                unused.append(name)
                flat[start:stop].zero_()
            else:
                dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
                flat[start:stop].copy_(dense.reshape(-1))
        if len(unused) == len(self._names):
            raise ClientError(
                "push() sends the gradients of the model. Found none: call backward() between pull() and "
                "push(), or give push() a vector."
            )
        return flat, tuple(unused)

    def checked(self, vector: object) -> Tensor:
        """A vector of the user's own as (d,) float32 on the CPU.

        Raises:
            ClientError: it is none.
        """
        numel = self.layout.numel
        if not isinstance(vector, Tensor):
            raise ClientError(f"`vector` should be a torch.Tensor. Found {type(vector).__name__}.")
        if vector.shape != (numel,):
            raise ClientError(f"`vector` should have the shape ({numel},). Found {tuple(vector.shape)}.")
        if vector.dtype not in TYPES or vector.layout is not torch.strided:
            raise ClientError(
                "`vector` should be dense, of float32 or another real floating-point type. Found "
                f"{vector.dtype}, {vector.layout}."
            )
        return vector.detach().to("cpu", torch.float32)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside those of `torch.compile`, DataParallel and DistributedDataParallel."""
    while True:
        inner = model.module if isinstance(model, DataParallel | DistributedDataParallel) else None
        inner = getattr(model, COMPILED, None) if inner is None else inner
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """The name of a parameter without that of compiled modules on the way to it."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def check_parameter(name: str, parameter: nn.Parameter) -> None:
    """See that a parameter can be part of the vector.

    Raises:
        ClientError: it cannot.
    """
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ClientError(
            f"Parameter {name!r} should have a shape. Found that of a lazy module: pass a batch through "
            "the model before connect()."
        )
    if any(kind.__name__ in SHARDED for kind in type(parameter).__mro__):
        raise ClientError(f"Parameter {name!r} should be whole in this process. Found a sharded one.")
    if parameter.dtype.is_complex:
        raise ClientError(
            f"Parameter {name!r} should be of real numbers. Found {parameter.dtype}: keep "
            "torch.view_as_real of it as the parameter."
        )
    if parameter.dtype not in TYPES:
        raise ClientError(
            f"Parameter {name!r} should be float32, bfloat16 or float16. Found {parameter.dtype}."
        )
    if parameter.is_meta:
        raise ClientError(f"Parameter {name!r} should have numbers. Found it on the device meta.")


def check_whole(module: nn.Module) -> None:
    """See that all of a model is in this process.

    Raises:
        ClientError: it is not.
    """
    for part in module.modules():
        if any(kind.__name__ in SHARDED for kind in type(part).__mro__):
            raise ClientError(
                f"`model` should be whole in this process. Found {type(part).__name__} in it."
            )
