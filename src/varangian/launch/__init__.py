"""Ways to carry a run out: real processes over gRPC, or one process without sockets; the same numbers.

`processes` starts a server and workers on this machine, which are in `children`, `simulation` needs no
sockets, `server_run` is the part that `varangian server` uses by itself, `model_side` what it asks of its
model, and `output` writes the run folder. The command line and programs import it; it imports the
configuration and everything below.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from varangian.launch.output.run_result import RunResult
from varangian.launch.result import Note, Outcome, RunError

if TYPE_CHECKING:
    # Child processes import this package and need none of it.
    from varangian.config import RunConfig
    from varangian.launch.checkpoints.resumed import Resumed
    from varangian.server.observability.record import Observe, RoundRecord

__all__ = ["Note", "Outcome", "RunError", "RunResult", "run"]


def run(
    config: RunConfig,
    *,
    observe: Observe | None = None,
    note: Note | None = None,
    folder: Path | None = None,
    resume: Resumed | None = None,
) -> RunResult:
    """Train as the configuration says, on this machine, and return when it is over.

    Programs and notebooks call it through `varangian.run`. Where an event loop runs already, the run has
    one of its own in another thread, and this function waits for it. The first Ctrl-C ends the run after
    the round in hand, in a notebook too; in a thread that is not the main one no signal is handled.

    Args:
        config: as `varangian.config.load` returns it.
        observe: called with the record of every round; the run folder holds them, too. In a run that was
            called from inside an event loop it is called in another thread.
        note: takes sentences about the run, as that a worker has ended; by default they are logged as
            warnings of the logger `varangian`.
        folder: the run folder, which is made and must be empty if it exists; by default a new one below
            `config.output`.
        resume: the run that goes on, as `varangian.launch.checkpoints.resume` gives it; its folder is
            unlocked in the end.

    Raises:
        RunError: the run cannot be started, or cannot go on.
    """
    if not hasattr(config, "backend"):
        found = type(config).__name__
        raise TypeError(
            f"`config` should be what varangian.config.load(FILE, ['key=value']) returns. Found {found}."
        )
    observe, note = observe or _nothing, note or logging.getLogger("varangian").warning
    try:
        if config.backend == "simulate":
            from varangian.launch.simulation.simulate import run_in_simulation

            return run_in_simulation(config, observe=observe, note=note, folder=folder, resume=resume)
        from varangian.launch.processes import run_in_processes

        return run_in_processes(config, observe=observe, note=note, folder=folder, resume=resume)
    finally:
        if resume is not None:  # also if it could not be opened
            resume.lock.release()


def _nothing(record: RoundRecord) -> None:
    del record
