"""Threads for work whose bits do not depend on their number."""

from __future__ import annotations

import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

MOST_THREADS = 8
"""Most threads: the work is bound by memory."""
_granted = ContextVar("granted", default=1)


def cores() -> int:
    """The number of threads for such work: as many as torch has, or more within `every_core`."""
    return max(torch.get_num_threads(), _granted.get())


@contextmanager
def every_core() -> Generator[None, None, None]:
    """Let the work of this thread use all cores of the process.

    More threads of torch would not do: its sums change with their number, and between two pieces of work
    they spin.
    """
    before = _granted.set(min(MOST_THREADS, _usable()))
    try:
        yield
    finally:
        _granted.reset(before)


def _usable() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """A pool that is kept: starting threads takes as long as a block of columns."""
    return ThreadPoolExecutor(threads, "varangian-kernels")
