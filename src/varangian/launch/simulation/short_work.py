"""Executor that does short work on the event loop itself, and long work in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

LONGEST = 0.05
"""Seconds for which the event loop need not answer."""


class ShortWork(Executor):
    """Does what it is given at once, as long as the work before was short; else in a thread.

    To wake a thread and to be woken by it takes as long as a step of a small model. Whoever uses it waits
    for one result before asking for the next.

    Args:
        thread: for long work, and for the first.
        longest: seconds that work may take on the event loop.
    """

    def __init__(self, thread: Executor, longest: float = LONGEST) -> None:
        self._thread, self._longest = thread, longest
        self._took = float("inf")

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self._took > self._longest:
            return self._thread.submit(self._timed, function, *args, **kwargs)
        done = Future[T]()
        try:
            done.set_result(self._timed(function, *args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done

    def _timed(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self._took = time.perf_counter() - start


def computes_as_a_new_thread() -> bool:
    """Whether nothing was changed here that torch keeps for each thread, but the number of threads."""
    changed = (
        not torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.get_default_device().type != "cpu"
    )
    least = torch.tensor([1e-40], dtype=torch.float32)
    return not changed and (least * 1).item() > 0  # subnormal numbers are not flushed


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Let torch use so many threads for the work of this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
