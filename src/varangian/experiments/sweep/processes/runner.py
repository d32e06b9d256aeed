"""Carrying jobs out side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from varangian.experiments.sweep.processes.forker import FAREWELL, Round, serve
from varangian.experiments.sweep.processes.job import Ending, Job
from varangian.launch import RunError
from varangian.launch.children import fork_server


@dataclass(frozen=True)
class Remark:
    """A sentence for the user about what carries the runs out."""

    text: str


Event = Round | Ending | Remark


class Runner(Protocol):
    """Carries jobs out; a context manager that leaves nothing behind when an error leaves it."""

    def __enter__(self) -> Runner: ...
    def __exit__(self, *error: object) -> None: ...
    def start(self, job: Job) -> None:
        """Start a run; returns at once."""
        ...

    def events(self, seconds: float) -> Iterator[Event]:
        """Events since the last call; waits up to so many seconds for one."""
        ...


class ForkingRunner:
    """A runner with a forker, which has a process for each run."""

    def __init__(self) -> None:
        self._pipe: Connection
        self._process: BaseProcess

    def __enter__(self) -> ForkingRunner:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = fork_server.context().Process(target=serve, args=(theirs,), name="varangian sweep")
        fork_server.start_process(self._process, None)
        theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(2 * FAREWELL)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def start(self, job: Job) -> None:
        self._pipe.send(job)

    def events(self, seconds: float) -> Iterator[Round | Ending]:
        """Events since the last call.

        Raises:
            RunError: the process that carries the runs out has ended.
        """
        try:
            while self._pipe.poll(seconds):
                yield self._pipe.recv()
                seconds = 0.0
        except (EOFError, OSError) as error:
            todo = "Type the sweep again: it does what is missing"
            raise RunError(f"the process that starts the runs of the sweep has ended. {todo}.") from error
