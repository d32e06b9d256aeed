"""The forker of a sweep: a process with one thread that has everything imported, and forks one per run.

The process of the command has threads, and may be a notebook; forking it would not be safe. The forker
starts from the fork server of `varangian.launch`, imports what a simulation needs once, and is told which
runs to carry out over a pipe. It tells of rounds and endings over the same pipe. When the pipe closes, as
when the process of the command is killed, it kills its children and ends.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import IO

import torch

from varangian.experiments.sweep.processes.job import Ending, Job, carry_out, record_crash
from varangian.launch.children.child import CRASHED
from varangian.launch.children.worker_processes import describe_exit
from varangian.launch.output import temporary_folder

IMPORTED = (
    "varangian.launch.simulation.simulate",
    "varangian.worker.training.batched",
    # torch imports it, and sympy, for the first loss under vmap: longer than many a run takes.
    "torch.fx.experimental.symbolic_shapes",
)
"""Modules that the runs of a sweep need."""
FAREWELL = 3.0
"""Seconds for a run to end after the round in hand, before it is killed."""
PRINTED = 1 << 20
"""Bytes of the output of a run that are kept, the last ones."""
LAST_WORDS = 300
"""Characters of the output of a crashed run that stand in its error."""


@dataclass(frozen=True)
class Round:
    """How far a run is."""

    id: str
    rounds: int


@dataclass
class _Child:
    job: Job
    process: BaseProcess
    pipe: Connection
    printed: IO[bytes]
    ended: bool = False
    """Whether it has told of its ending."""


def serve(pipe: Connection) -> None:
    """Carry out the jobs that come over the pipe, each at once in a process of its own, until it closes."""
    # Signals may reach the whole group; the process of the command decides what becomes of the runs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepare()
    children = Children(pipe.send)
    try:
        while True:
            if not children.wait(pipe):
                continue
            try:
                job = pipe.recv()
            except (EOFError, OSError):
                return
            if job is None:
                return
            children.start(job)
    finally:
        children.end()


def prepare() -> None:
    """Import what runs need, once for all children."""
    for module in IMPORTED:
        import_module(module)
    gc.freeze()


class Children:
    """Runs in hand, each in a child of this process, which has one thread.

    Args:
        tell: is told of rounds and endings; its OSError at an ending of a crashed run is ignored.
    """

    def __init__(self, tell: Callable[[Round | Ending], None]) -> None:
        self._tell = tell
        self._children: list[_Child] = []

    def __len__(self) -> int:
        return len(self._children)

    def wait(self, *others: Connection) -> bool:
        """Wait for children or one of the other pipes; tell what has happened; whether another is ready."""
        pipes = [child.pipe for child in self._children if not child.ended]
        sentinels = [child.process.sentinel for child in self._children]
        ready = wait([*others, *pipes, *sentinels])
        for child in [*self._children]:
            if child.pipe in ready:
                self._hear(child)
            if child.process.sentinel in ready:
                self._bury(child)
        return any(other in ready for other in others)

    def end(self) -> None:
        """End what runs: after the round in hand, or soon."""
        for child in self._children:
            child.process.terminate()
        for child in self._children:
            child.process.join(FAREWELL)
            child.process.kill()
            child.process.join()

    def start(self, job: Job) -> None:
        """Start a run; returns at once."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        printed = tempfile.TemporaryFile()  # noqa: SIM115
        # This process has no other thread, so forking it is safe.
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(job, theirs, printed), name=f"varangian {job.id}"
        )
        process.start()
        theirs.close()
        self._children.append(_Child(job, process, ours, printed))

    def _hear(self, child: _Child) -> None:
        try:
            while child.pipe.poll():
                told = child.pipe.recv()
                child.ended = child.ended or isinstance(told, Ending)
                self._tell(told)
        except (EOFError, OSError):
            return

    def _bury(self, child: _Child) -> None:
        """A process has ended: say how, if it has not said so itself."""
        self._hear(child)
        self._children.remove(child)
        child.process.join()
        child.pipe.close()
        if not child.ended and child.process.exitcode == -signal.SIGTERM:  # before the run heard signals
            with suppress(OSError):
                self._tell(Ending(child.job.id, "interrupted"))
        elif not child.ended:
            printed = _tail(child.printed)
            sentence = f"the process of the run {describe_exit(child.process.exitcode)}"
            if words := " ".join(printed.decode(errors="replace").split())[-LAST_WORDS:]:
                sentence += f", and printed last: {words}"
            record_crash(child.job, sentence, printed)
            with suppress(OSError):  # the process of the command may have gone
                self._tell(Ending(child.job.id, "error", sentence))
        child.printed.close()


def _run(job: Job, pipe: Connection, printed: IO[bytes]) -> None:
    """Carry a run out, in a process of its own; ends the process."""
    gc.enable()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [*job.command]
    torch.set_num_threads(1)  # runs beside each other, and a pool of threads for each would take turns
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(printed.fileno(), stream.fileno())
    code = CRASHED
    try:
        pipe.send(carry_out(job, _teller(job, pipe), lambda: _flushed_tail(printed)))
        code = 0
    finally:
        temporary_folder.discard()
        # Nothing here needs a farewell, and threads of libraries may wait for ever.
        os._exit(code)


def _teller(job: Job, pipe: Connection) -> Callable[[int], None]:
    return lambda rounds: pipe.send(Round(job.id, rounds))


def _end_with_parent() -> None:
    """Kill this process when the forker has died: a run without it would be of no use."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _flushed_tail(printed: IO[bytes]) -> bytes:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return _tail(printed)


def _tail(printed: IO[bytes]) -> bytes:
    """The last part of what a run has printed."""
    size = os.fstat(printed.fileno()).st_size
    return os.pread(printed.fileno(), PRINTED, max(0, size - PRINTED))
