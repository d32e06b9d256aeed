"""One run of a sweep, in the process that carries it out: from its settings to its folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varangian.config import loads
from varangian.experiments.sweep.processes.folders import RunComplete, RunFolders, RunTaken
from varangian.files import write_atomically
from varangian.launch import RunError, run
from varangian.plugins import describe_error
from varangian.registry import ConfigError
from varangian.server.observability.record import RoundRecord

OUTPUT = "output.log"
"""The output of a run, if it printed anything."""
PAUSE = 0.3
"""Seconds between two reports of how far a run is."""

Kind = Literal["complete", "found", "error", "taken", "interrupted"]
"""complete: its folder has a result now; found: it had one before; error: the folder says which; taken:
another process carries it out; interrupted: nothing is left of it."""


@dataclass(frozen=True)
class Job:
    """The task of a process: one run; small, and it can be pickled."""

    id: str
    settings: Mapping[str, Any]
    """Resolved."""
    output: Path
    command: tuple[str, ...]
    """That started the sweep, for the manifest."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    id: str
    kind: Kind
    error: str = ""
    """The sentence of an error."""
    seconds: float | None = None
    """That the run took, where this was measured beside it."""


def carry_out(job: Job, tell: Callable[[int], None], printed: Callable[[], bytes] = bytes) -> Ending:
    """Carry one run out, and leave its folder as other sweeps look for it.

    Args:
        job: the run.
        tell: is told the number of rounds now and then.
        printed: what the run has printed.
    """
    try:
        with RunFolders(job.output).claim(job.id) as claim:
            try:
                config = loads(job.settings)  # here, as code of the user may have changed
                result = run(config, observe=_Pace(tell), note=_print, folder=claim.path)
                if result.outcome == "interrupted":
                    return Ending(job.id, "interrupted")
                if result.folder != claim.path:
                    raise RunError(
                        f"the run folder could not be written; what there is lies in {result.folder}"
                    )
                if result.code_error is not None:  # without a result it is in no table
                    raise RunError(result.code_error)
            except (Exception, SystemExit) as error:
                sentence = _sentence(error)
                _keep(claim.path, printed())
                claim.fail(job.settings, sentence, type(error).__name__)
                return Ending(job.id, "error", sentence)
            _keep(claim.path, printed())
            claim.finish(result)
    except RunTaken:
        return Ending(job.id, "taken")
    except RunComplete:
        return Ending(job.id, "found")
    except OSError as error:
        return Ending(job.id, "error", f"the run folder cannot be written: {error.strerror or error}")
    return Ending(job.id, "complete")


def record_crash(job: Job, sentence: str, printed: bytes) -> None:
    """Leave the folder of a run whose process has crashed as one that ended on an error."""
    try:
        with RunFolders(job.output).claim(job.id) as claim:
            _keep(claim.path, printed)
            claim.fail(job.settings, sentence, "Crash")
    except (RunTaken, RunComplete, OSError):
        return


class _Pace:
    """Tells of rounds, but not of each of them."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell, self._next = tell, 0.0

    def __call__(self, record: RoundRecord) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PAUSE
            self._tell(record.round + 1)


def _print(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _keep(path: Path, printed: bytes) -> None:
    if printed.strip():
        write_atomically(path / OUTPUT, printed)


def _sentence(error: BaseException) -> str:
    """The error in one sentence."""
    if isinstance(error, RunError | ConfigError):
        return str(error).replace("\n", "; ")
    return describe_error(error)
