"""A worker process on this machine: it hosts some workers, and knows nothing of the configuration.

`preload` imports this module in the fork server, so that children start with torch and grpc imported.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

from varangian.launch.output.logs import log_to_file
from varangian.structured_logs import Format, event
from varangian.worker.host import host
from varangian.worker.training.task import Task
from varangian.worker.transport.tls import Proof

log = logging.getLogger(__name__)

CRASHED = 70
"""Exit code of a child that ended on an unexpected error."""


@dataclass(frozen=True)
class ChildSpec:
    """The argument of a child process; small, and it can be pickled."""

    server: str
    proofs: Mapping[str, Proof]
    """Worker names to the token or bundle of each."""
    task: Task
    threads: int
    log: Path
    patience: float = inf
    """Seconds to wait for a server that cannot be reached."""
    state: Path | None = None
    """The folder in which they keep what they remember; None keeps nothing."""
    log_format: Format = "text"
    traces: bool = False
    """Whether they make spans for OpenTelemetry."""


def run_child(spec: ChildSpec) -> None:
    """Host these workers until the run is finished; ends the process with the exit code."""
    gc.enable()  # off in the fork server
    # Ctrl-C reaches the whole terminal; the launcher decides what becomes of its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log_to_file(spec.log, form=spec.log_format):
        try:
            names, proofs = tuple(spec.proofs), spec.proofs
            state = None if spec.state is None else partial(_same_folder, spec.state)
            code = host(
                spec.server,
                names,
                proofs,
                spec.task,
                spec.threads,
                patience=spec.patience,
                state=state,
                traces=spec.traces,
            )
        except Exception:
            log.exception(
                "the process of %s ended on an error", ", ".join(spec.proofs), extra=event("process_failed")
            )
            code = CRASHED
    # Threads of gRPC may still wait for a server that is gone; nothing here needs a farewell.
    os._exit(code)


def _same_folder(folder: Path, run: str) -> Path:
    """The folder of any run: a child serves one."""
    return folder


def _end_with_parent() -> None:
    """Terminate this process when its parent has died."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
