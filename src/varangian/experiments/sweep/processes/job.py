"""One run of a sweep, in the process that carries it out: from its settings to its folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varangian.config import loads
from varangian.experiments.sweep.processes.folders import RunComplete, RunFolders, RunTaken
from varangian.files import write_atomically
from varangian.launch import RunError, run
from varangian.plugins import describe_error
from varangian.registry import ConfigError, is_target
from varangian.server.observability.record import RoundRecord

OUTPUT = "output.log"
"""What a run printed, if it printed anything."""
PAUSE = 0.3
"""Seconds between two reports of how far a run is."""

Kind = Literal["complete", "found", "error", "taken", "interrupted"]
"""complete: its folder has a result now; found: it had one before; error: the folder says which; taken:
another process carries it out; interrupted: nothing is left of it."""


@dataclass(frozen=True)
class Job:
    """What a process is told of one run; small, and it can be pickled."""

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
                pace, failures = _Pace(tell), _Failures(job.settings["aggregator"])

                def observe(record: RoundRecord) -> None:
                    pace(record)
                    failures.look(record)

                result = run(config, observe=observe, note=_print, folder=claim.path)
                if result.outcome == "interrupted":
                    return Ending(job.id, "interrupted")
                if result.folder != claim.path:
                    raise RunError(
                        f"the run folder could not be written; what there is lies in {result.folder}"
                    )
                failures.check(result.rounds)
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


class _Failures:
    """Rounds in which a rule, a mixing or an attack of the user failed.

    A run goes on without them. Its scores are not those of the rule then, nor under the attack: a rule
    looks robust where the attack has only raised an error. Without a result it is in no table.
    """

    def __init__(self, aggregator: object) -> None:
        self._parts = [*_own_parts(aggregator)]
        self._count, self._first = 0, ""

    def look(self, record: RoundRecord) -> None:
        if reason := self._reason(record):
            self._count += 1
            self._first = self._first or reason

    def check(self, rounds: int) -> None:
        """See that there is none.

        Raises:
            RunError: there is.
        """
        if self._count:
            times = f"in {self._count} of {rounds} rounds"
            raise RunError(f"{self._first.rstrip('.')}. This was so {times}, so the scores do not count.")

    def _reason(self, record: RoundRecord) -> str:
        skipped = record.skipped or ""
        for part in self._parts:
            if f"{part} failed: " in skipped or f"of {part} should return" in skipped:
                return skipped.partition(": ")[2]
        declined = record.declined.values()
        return next((reason for reason in declined if reason.startswith("`byzantine.attack` ")), "")


def _own_parts(spec: object) -> Iterator[str]:
    """The names of classes and functions of the user in an aggregator, as it is resolved."""
    if isinstance(spec, Mapping):
        for name, fields in spec.items():
            if is_target(name):
                yield name
            yield from _own_parts(fields)
    elif isinstance(spec, list | tuple):
        for one in spec:
            yield from _own_parts(one)


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
