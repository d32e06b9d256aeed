"""The buffers of a module as numbers behind its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from varangian.protos.layout import BUFFER
from varangian.worker.training.flat import ModelError

BufferMode: TypeAlias = Literal["refuse", "local", "robust"]
"""What becomes of buffers that training changes: an error; each worker has its own; or they travel, and the
server takes their median."""


class ModelBuffers:
    """The buffers of a module, (b,) float32 in the order of `named_buffers`; a shared one once.

    An integer is exact up to 2^24; one that a module reads back is rounded to the nearest.

    Args:
        module: of the model.
        rename: from the name of a buffer to that in the layout.

    Raises:
        ModelError: a buffer cannot be sent as numbers.
    """

    def __init__(self, module: nn.Module, rename: Callable[[str], str] = str) -> None:
        self._module, self._rename = module, rename
        self._shapes = {name: buffer.shape for name, buffer in _buffers(module).items()}
        for name, buffer in _buffers(module).items():
            if buffer.is_complex() or buffer.layout is not torch.strided or buffer.is_quantized:
                found = f"Found {name!r}: {buffer.dtype}, {buffer.layout}."
                raise ModelError(
                    f"Every buffer of the model should be a dense tensor of real numbers. {found}"
                )

    @property
    def entries(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes, as a layout has them."""
        return tuple(
            (f"{BUFFER}{self._rename(name)}", tuple(shape)) for name, shape in self._shapes.items()
        )

    @property
    def numel(self) -> int:
        """The number b of numbers."""
        return sum(shape.numel() for shape in self._shapes.values())

    @torch.no_grad()
    def read(self) -> Tensor:
        """(b,) float32, a copy, on the device of the first buffer.

        Raises:
            ModelError: a buffer is not there any more, or has another shape.
        """
        found = self._found()
        device = next(iter(found.values())).device
        return torch.cat([buffer.reshape(-1).to(device, torch.float32) for buffer in found.values()])

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the buffers from (b,), on any device.

        Raises:
            ModelError: as `read`.
        """
        found = self._found()
        for buffer, part in zip(
            found.values(), flat.split([b.numel() for b in found.values()]), strict=True
        ):
            whole = not buffer.is_floating_point()
            buffer.copy_((part.round() if whole else part).view(buffer.shape))

    def _found(self) -> dict[str, Tensor]:
        now = _buffers(self._module)
        found = {name: now[name] for name in self._shapes if name in now}
        if {name: buffer.shape for name, buffer in found.items()} != self._shapes:
            changed = [n for n, shape in self._shapes.items() if n not in found or found[n].shape != shape]
            raise ModelError(
                "Training should keep the names and shapes of buffers. Found others: "
                f"{', '.join(changed[:4])}."
            )
        return found


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in module.named_buffers() if buffer.numel()}
