"""The engines by their names, for the command line and for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from varangian.experiments.sweep.engines.queue import Queue
from varangian.experiments.sweep.engines.runner import QueueRunner
from varangian.registry import ConfigError, Problem, suggestion

QUEUES = {
    "slurm": "varangian.experiments.sweep.engines.slurm:Slurm",
    "kubernetes": "varangian.experiments.sweep.engines.kubernetes:Kubernetes",
    "ray": "varangian.experiments.sweep.engines.ray:Ray",
}
"""Each is called with its options as text; its module is imported when it is chosen."""


@dataclass(frozen=True)
class Engine:
    """An engine as a sweep uses it."""

    queue: Queue
    per_task: int = 1
    """Runs that a task carries out, one after the other."""
    limit: int | None = None
    """Tasks at the same time; None is as many as the engine starts."""
    detach: bool = False
    """Whether the sweep leaves when the runs are handed over."""

    @property
    def title(self) -> str:
        return self.queue.title

    def runner(self, output: Path, name: str) -> QueueRunner:
        """What hands the runs of a sweep over.

        Args:
            output: the folder of run folders.
            name: of the sweep.
        """
        return QueueRunner(self.queue, output, name, self.per_task, self.limit)


def engine(
    name: str, options: str = "", *, per_task: int = 1, limit: int | None = None, detach: bool = False
) -> Engine:
    """The engine of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in QUEUES:
        raise ConfigError([Problem("engine", "there is no such engine", name, suggestion(name, QUEUES))])
    module, _, attribute = QUEUES[name].partition(":")
    make: Callable[[str], Queue] = getattr(import_module(module), attribute)
    return Engine(make(options), per_task, limit, detach)
