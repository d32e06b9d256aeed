"""Ways to carry a run out: real processes over gRPC, or one process without sockets; the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from varangian.backends.result import Outcome, RunError, RunResult

if TYPE_CHECKING:
    # Child processes import this package and need none of it.
    from varangian.config import RunConfig
    from varangian.server.record import Observe

__all__ = ["Note", "Outcome", "RunError", "RunResult", "run"]

Note = Callable[[str], None]
"""Takes what a user should know besides the rounds."""


def run(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry out a run on this machine, by the backend that it names.

    Raises:
        RunError: it cannot be started, or cannot go on.
    """
    if config.backend == "simulate":
        from varangian.backends.simulate import simulate

        return simulate(config, observe=observe, note=note)
    from varangian.backends.processes import processes

    return processes(config, observe=observe, note=note)
