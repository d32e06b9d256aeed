"""Choice of the backend: the first that takes the rows, or the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators.kernels import blocked, native, reference
from varangian.aggregators.kernels.gpu import backend as gpu
from varangian.aggregators.kernels.library import level
from varangian.aggregators.rows import Rows


class Backend(Protocol):
    """A module with the functions that read d columns; `reference` defines what they return.

    They may raise `NotFinite` for a row that is not finite, or where a sum overflows.
    """

    @property
    def NAME(self) -> str: ...  # read-only, so that a module's constant fits

    @property
    def DETECTS_INVALID(self) -> bool:
        """Whether rows need no screening: it raises `NotFinite`, and subnormal numbers cost nothing."""
        ...

    def refuses(self, rows: Rows, /) -> str | None: ...
    def screen(self, rows: Rows, /) -> tuple[Tensor, Tensor]: ...
    def gram(self, rows: Rows, reference: Tensor | None, /) -> Tensor: ...
    def centred(self, rows: Rows, reference: Tensor | None, /) -> Tensor: ...
    def combine(
        self, coords: Tensor, rows: Rows, reference: Tensor | None, out: Tensor | None = None, /
    ) -> Tensor:
        """Into `out` if there is one: contiguous, of the rows' dtype, and no part of a row."""
        ...

    def columnwise(
        self,
        rule: Callable[[Tensor], Tensor],
        coords: Tensor | None,
        rows: Rows,
        reference: Tensor | None,
        /,
    ) -> Tensor: ...


BACKENDS: tuple[Backend, ...] = (native, gpu, blocked, reference)


def kernels_in_use() -> str:
    """The backend of float32 rows on the CPU, and the version of compiled kernels: each has other bits."""
    chosen = backend_for(Rows((torch.zeros(1, dtype=torch.float32, device="cpu"),)))
    return f"{chosen.NAME} v{level()}" if chosen is native else chosen.NAME


class BackendRefused(RuntimeError):
    """A backend was asked for by name and cannot take these rows."""


def unscreened(backend: Backend, rows: Rows, described: bool) -> bool:
    """Whether rows need no screening; `described` where they go to `columnwise` with an `Order` alone."""
    return backend.DETECTS_INVALID or (described and backend is blocked and blocked.detects_invalid(rows))


def after(backend: Backend, rows: Rows) -> Backend:
    """The next slower backend that takes the rows, after sums overflowed in this one."""
    slower = BACKENDS[BACKENDS.index(backend) + 1 :]
    return next((b for b in slower if b.refuses(rows) is None), backend)


def backend_for(rows: Rows, name: str | None = None) -> Backend:
    """The fastest backend for these rows, or the named one.

    Raises:
        BackendRefused: the named backend refuses these rows, or there is none of this name.
    """
    if name is None:
        return next(b for b in BACKENDS if b.refuses(rows) is None)
    for backend in BACKENDS:
        if name == backend.NAME:
            if reason := backend.refuses(rows):
                raise BackendRefused(f"Backend {name!r} was requested, but {reason}.")
            return backend
    known = ", ".join(b.NAME for b in BACKENDS)
    raise BackendRefused(f"There is no backend {name!r}. Known: {known}.")
