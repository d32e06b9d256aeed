"""The worker processes of a run on this machine: start them together, watch them, leave none behind."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.process import BaseProcess
from types import TracebackType

from varangian.config import RunConfig
from varangian.launch.children import fork_server
from varangian.launch.children.child import ChildSpec, run_child
from varangian.resources import cores as usable_cores

POLL = 0.2
"""Seconds between looks at the children."""
FAREWELL = 5.0
"""Seconds for a child to leave by itself once the run is over, and again after it was asked to."""


@dataclass
class WorkerProcesses:
    """Child processes, as a context manager: whatever happens, none is left when it is over."""

    members: dict[BaseProcess, tuple[str, ...]] = field(default_factory=dict)
    """The workers in each process."""

    def start(self, posts: Sequence[ChildSpec]) -> None:
        """One process for each post; takes as long as the first import of torch in a fork server."""
        for post in posts:
            name = f"varangian {' '.join(post.proofs)}"
            process = fork_server.context().Process(target=run_child, args=(post,), name=name)
            process.daemon = True  # in case this process dies without waiting for it
            fork_server.start_process(process, post)
            self.members[process] = tuple(post.proofs)

    async def watch(self, lost: Callable[[tuple[str, ...], str, int], None]) -> None:
        """Return when no process is left.

        `lost` is called with the workers of each that ends, how it ended, and how many workers are left.
        """
        alive = dict(self.members)
        while alive:
            for process in [process for process in alive if process.exitcode is not None]:
                workers = alive.pop(process)
                lost(workers, describe_exit(process.exitcode), sum(map(len, alive.values())))
            await asyncio.sleep(POLL)

    def __enter__(self) -> WorkerProcesses:
        fork_server.start()  # it imports torch while this process loads the data
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nobody has told the children that the run is over.
        for end in self._farewells(patient=error is None):
            end()
            if self._all_gone(FAREWELL):
                return

    def _farewells(self, patient: bool) -> Iterator[Callable[[], None]]:
        if patient:
            yield lambda: None
        yield lambda: self._each(BaseProcess.terminate)
        yield lambda: self._each(BaseProcess.kill)

    def _each(self, act: Callable[[BaseProcess], None]) -> None:
        for process in self.members:
            if process.exitcode is None:
                act(process)

    def _all_gone(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        for process in self.members:
            process.join(max(0.0, until - time.monotonic()))
        return all(process.exitcode is not None for process in self.members)


def describe_exit(code: int | None) -> str:
    """The end of a process, in words."""
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def assign_processes(config: RunConfig) -> list[tuple[str, ...]]:
    """Which workers share a process: never an honest one with one that attacks."""
    honest, byzantine = config.honest_names, config.byzantine_names
    size = config.worker.per_process
    cores = max(1, ceil(usable_cores()))
    # Attackers who see others compute their vectors too; in one process they do so once for all.
    return [
        *_divide(honest, -(-len(honest) // size) if size else cores),
        *_divide(byzantine, -(-len(byzantine) // size) if size else 1),
    ]


def _divide(workers: tuple[str, ...], parts: int) -> Iterator[tuple[str, ...]]:
    parts = min(parts, len(workers))
    for i in range(parts):
        yield workers[i * len(workers) // parts : (i + 1) * len(workers) // parts]
