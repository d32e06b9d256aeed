"""The device of torch to compute on: whether it works here, its memory, and the default of a program."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from varangian.plugins import InputError, describe_error


def find_device(name: str) -> torch.device:
    """A device that can compute here.

    Raises:
        InputError: when there is none of this name.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"`worker.device` should be one that torch knows, as cpu or cuda:0. Found {name!r}."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"`worker.device` should be one of this machine. Found {name!r}, and torch sees no GPU."
        )
    try:
        works = float(torch.ones(1, dtype=torch.float32).to(device).add(1).cpu()) == 2
    except Exception as error:
        raise InputError(
            f"`worker.device` should be one of this machine. Found {name!r}, which does not work: "
            f"{describe_error(error)}. Set worker.device=cpu."
        ) from error
    if not works:
        raise InputError(f"`worker.device` should compute. Found {name!r}. Set worker.device=cpu.")
    return device


class MemoryFootprint(TorchDispatchMode):
    """Bytes of tensors that operations make while this is active, and that are alive at the same time.

    Args:
        known: tensors that are there already.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """For torch: yes would import its compiler, which takes seconds, and nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


@contextmanager
def as_in_a_new_thread() -> Generator[None]:
    """Leave out what a program has set in torch for its own thread: a default device, inference mode."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        yield
