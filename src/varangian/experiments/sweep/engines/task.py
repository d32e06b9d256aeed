"""A task of a batch, on the node where an engine starts it: `python -m ...task FOLDER INDEX`.

Its runs have a process each, one at a time or as many as the task has cores. SIGTERM, by which engines end
a task, ends its runs; nothing is left of them, and a task that is started again does what is missing.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

from varangian.experiments.sweep.engines.batch import Batch, BatchError
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.processes.forker import Children, Round, prepare
from varangian.experiments.sweep.processes.job import Ending, Job

CORES = ("VARANGIAN_TASK_CORES", "SLURM_CPUS_PER_TASK")
"""Variables that say how many cores a task has; by default one."""
WITH_PARENT = "VARANGIAN_TASK_WITH_PARENT"
"""The variable by which a task gets SIGTERM when the process that started it is killed."""
PR_SET_PDEATHSIG = 1
"""The option of prctl for that, in linux/prctl.h."""


def main(arguments: list[str]) -> int:
    """Carry out the runs of a task that have not ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if os.environ.get(WITH_PARENT) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        batch = Batch.read(Path(arguments[0]))
        jobs = batch.jobs(int(arguments[1]))
    except BatchError as error:
        print(f"varangian: {error}", file=sys.stderr)
        return 1
    prepare()
    todo = deque(job for job in jobs if not batch.has_ended(job.id))
    began = dict[str, tuple[Job, float]]()

    def tell(told: Round | Ending) -> None:
        if isinstance(told, Ending):
            job, start = began.pop(told.id)
            if told.kind == "interrupted":  # by a signal to its process; this one may be about to get it
                todo.append(job)
            else:
                batch.tell(dataclasses.replace(told, seconds=time.monotonic() - start))

    children = Children(tell)
    try:
        while todo or len(children):
            while todo and len(children) < cores():
                job = todo.popleft()
                began[job.id] = (job, time.monotonic())
                children.start(job)
            children.wait()
    finally:
        children.end()
        for id in [*began]:
            RunFolders(batch.output).clear(id)
    return 0


def cores() -> int:
    """Runs of a task at the same time."""
    found = next((text for name in CORES if (text := os.environ.get(name, "")).isdecimal()), "1")
    return max(1, int(found))


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
