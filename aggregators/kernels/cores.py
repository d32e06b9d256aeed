"""How many threads share work whose bits do not depend on how many they are."""

from __future__ import annotations

import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

MOST = 8
"""What is bound by memory is not done sooner by more of them."""
_granted = ContextVar("granted", default=1)


def cores() -> int:
    """Threads for such work in this thread: as many as torch has, or more where they were granted."""
    return max(torch.get_num_threads(), _granted.get())


@contextmanager
def every_core() -> Generator[None, None, None]:
    """Nothing else waits for this thread's work: while it lasts, all cores of the process may share it.

    More threads of torch would not do: its sums change with their number, and between two pieces of work
    they spin where others could compute.
    """
    before = _granted.set(min(MOST, _usable()))
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
    """So many, that stay: to start them takes as long as a block of columns."""
    return ThreadPoolExecutor(threads, "varangian-kernels")
