"""Ray: a task of a batch is a remote function that starts the program of the task, and waits for it.

Ray finds a place for each task; runs stay processes of their own, as everywhere. The cluster is that of
RAY_ADDRESS, or one on this machine that ends with the sweep.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from varangian.experiments.sweep.engines.batch import Batch
from varangian.experiments.sweep.engines.queue import QueueError, State
from varangian.experiments.sweep.engines.task import WITH_PARENT

ADDRESS, STATISTICS = "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"
FAREWELL = 15.0
"""Seconds for the program of a task to end, before it is killed."""


@dataclass
class _Submitted:
    """A batch that Ray has, or will have when there is room below the limit."""

    batch: Batch
    limit: int | None
    waiting: deque[int]
    running: dict[int, Any] = field(default_factory=dict[int, Any])
    """The references of tasks, by number."""
    ended: dict[int, State] = field(default_factory=dict[int, State])


class Ray:
    """The Ray cluster that this process is or becomes a client of.

    Args:
        options: there are none.
    """

    title = "Ray"
    name = "ray"
    most = 100_000

    def __init__(self, options: str = "") -> None:
        self._options = options
        self._batches = dict[str, _Submitted]()
        self._ray: Any = None
        self._start: Any = None

    def check(self) -> None:
        """Connect to the cluster."""
        if self._options:
            raise QueueError(f"Ray takes no options. Found {self._options!r}. Its address is {ADDRESS}.")
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise QueueError(
                f'Ray needs the extra "ray": pip install "varangian[ray]" ({error}).'
            ) from error
        if not ray.is_initialized():
            os.environ.setdefault(STATISTICS, "0")  # a cluster of its own reports nothing to anybody
            here = {} if os.environ.get(ADDRESS) else {"include_dashboard": False}
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **here)
            except (OSError, RuntimeError, ValueError) as error:
                where = os.environ.get(ADDRESS, "this machine")
                raise QueueError(f"there is no Ray at {where}: {' '.join(str(error).split())}") from error
        self._ray = ray
        self._start = ray.remote(num_cpus=1, max_retries=0)(run_task)

    def submit(self, batch: Batch, limit: int | None) -> str:
        """Hand the tasks over; the handle is the name of the folder."""
        submitted = _Submitted(batch, limit, deque(range(len(batch.tasks))))
        self._batches[batch.path.name] = submitted
        self._fill(submitted)
        return batch.path.name

    def states(self, handle: str) -> Mapping[int, State]:
        """The states of the tasks; of a batch that another process has handed over, none."""
        submitted = self._batches.get(handle)
        if submitted is None:
            return {}
        references = [*submitted.running.values()]
        if references:
            done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
            over = {*done}
            for index, reference in [*submitted.running.items()]:
                if reference in over:
                    submitted.ended[index] = self._ending(reference)
                    del submitted.running[index]
        self._fill(submitted)
        return (
            {index: State("waiting") for index in submitted.waiting}
            | {index: State("running") for index in submitted.running}
            | submitted.ended
        )

    def cancel(self, handle: str) -> None:
        """Cancel what runs or waits."""
        submitted = self._batches.get(handle)
        if submitted is not None:
            submitted.ended |= {index: State("ended", "cancelled") for index in submitted.waiting}
            submitted.waiting.clear()
            for reference in submitted.running.values():
                self._ray.cancel(reference)

    def _fill(self, submitted: _Submitted) -> None:
        """Start tasks, as many at the same time as may be."""
        while submitted.waiting:
            if submitted.limit is not None and len(submitted.running) >= submitted.limit:
                return
            index = submitted.waiting.popleft()
            argv, log = (
                submitted.batch.argv(str(index)),
                str(submitted.batch.path / "logs" / f"{index}.log"),
            )
            submitted.running[index] = self._start.remote(argv, os.getcwd(), log)

    def _ending(self, reference: Any) -> State:
        errors = self._ray.exceptions
        try:
            code: int = self._ray.get(reference)
        except errors.TaskCancelledError:
            return State("ended", "cancelled")
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return State("ended", " ".join(str(error).split())[:200], lost=True)
        except errors.RayError as error:
            return State("ended", " ".join(str(error).split())[:200])
        return State("ended", f"exit code {code}" if code else "")


def run_task(argv: tuple[str, ...], folder: str, log: str) -> int:
    """Run the program of a task, in a process of Ray; returns its exit code."""
    environment = os.environ | {WITH_PARENT: "1", "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as printed:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, cwd=folder, env=environment
        )
    try:
        return process.wait()
    finally:
        process.terminate()
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
