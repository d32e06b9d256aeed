"""Which implementation runs: the first that does not refuse, or the one asked for, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from varangian.aggregators.kernels import blocked, gpu, native, reference
from varangian.aggregators.rows import Rows


class Backend(Protocol):
    """A module with the verbs that read d columns; `reference` defines what they mean.

    A verb may raise `NotFinite` when it meets a row that is not, or overflows.
    """

    @property
    def NAME(self) -> str: ...  # read-only, so that a module's constant fits

    @property
    def NOTICES(self) -> bool:
        """Whether rows need no screening: a verb raises `NotFinite`, and subnormal numbers cost nothing."""
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


class BackendRefused(RuntimeError):
    """A backend was asked for by name and cannot take these rows."""


def unscreened(backend: Backend, rows: Rows, described: bool) -> bool:
    """Whether rows need no screening; `described` if they only go to `columnwise`, with an `Order`."""
    return backend.NOTICES or (described and backend is blocked and blocked.notices(rows))


def after(backend: Backend, rows: Rows) -> Backend:
    """The next slower backend that takes them, for rows that were too much for this one."""
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
