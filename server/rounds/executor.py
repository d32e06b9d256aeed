"""Compute thread: aggregation, step and evaluation run there; so the event loop answers at all times."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from varangian.protos.network.thread_results import result_of

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThread:
    """A compute thread: one call after the other, in the order in which they came.

    Args:
        executor: where calls run, one at a time; by default a thread that ends with `close`.
        threads: torch threads of that thread. The same number gives the same bits.
    """

    def __init__(self, executor: Executor | None, threads: int) -> None:
        self._executor = executor or ThreadPoolExecutor(
            1, "varangian-learner", torch.set_num_threads, (threads,)
        )
        self._owned = executor is None

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await result_of(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        if self._owned:
            self._executor.shutdown(wait=False)
