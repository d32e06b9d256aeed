"""Optimizers of torch without its compiler, which takes seconds and 150 MB to import.

Classes of `torch.optim` are decorated so that torch.compile leaves them alone; the decorators import it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch

MARK = "__dynamo_disable"
"""Where torch keeps what a decorated method is replaced by, once it is made."""


def plain_class(kind: Any) -> Any:
    """The class without the decorators that import torch's compiler.

    Nor are there the hooks of torch's profiler, which take longer than a step of a small model.
    """
    unhooked = inspect.unwrap(kind.step)

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        return unhooked(self, closure)

    vars(step)["hooked"] = True  # torch decorates no step that says so
    return type(
        kind.__name__, (kind,), {"add_param_group": inspect.unwrap(kind.add_param_group), "step": step}
    )


@contextmanager
def without_compiler() -> Generator[None]:
    """Optimizers that a user's code makes meanwhile import no compiler, unless it is there already."""
    method = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    if "torch._dynamo" in sys.modules or hasattr(method, MARK):
        yield
        return
    setattr(method, MARK, method)
    try:
        yield
    finally:
        delattr(method, MARK)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """One step without gradients of its own; a class of torch goes without its decorators."""
    kind, private = cast("Any", type(optimizer)), cast("Any", optimizer)
    hooked = private._optimizer_step_pre_hooks or private._optimizer_step_post_hooks
    differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    plain = inspect.unwrap(kind.step)
    if plain.__module__.startswith("torch.optim") and not hooked and not differentiable:
        plain(optimizer)
    else:
        private.step()
    note_step(optimizer)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Let schedulers of torch know that there was a step: they warn where they are stepped before one."""
    cast("Any", optimizer)._opt_called = True
