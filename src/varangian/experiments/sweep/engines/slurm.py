"""Slurm: a batch is a job array, and a task an element of it.

What is asked of Slurm goes through its own commands: sbatch, squeue, scancel; and sacct, where the cluster
keeps accounts, for tasks that squeue has forgotten.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from varangian.experiments.sweep.engines.batch import Batch
from varangian.experiments.sweep.engines.queue import QueueError, QueueFullError, State

PATIENCE = 60.0
"""Seconds for a command of Slurm to answer."""
OURS = (
    "array",
    "output",
    "error",
    "wrap",
    "parsable",
    "job-name",
    "open-mode",
    "wait",
    "test-only",
    "ntasks",
)
SHORT = {"-a": "array", "-o": "output", "-e": "error", "-J": "job-name", "-W": "wait", "-n": "ntasks"}
"""Options of sbatch that the sweep sets itself."""
WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
)
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED")
USUAL = ("", "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency")
"""Reasons to wait that pass by themselves."""
FULL = re.compile(
    r"QOSMaxSubmit|AssocMaxSubmit|SubmitJobLimit|violates accounting/QOS policy|job queue is full",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Slurm:
    """The cluster that the commands of Slurm on the PATH reach.

    Args:
        options: more options for sbatch, as on its command line: `--partition=short --time=30`.
    """

    options: str = ""
    title = "Slurm"
    name = "slurm"

    def check(self) -> None:
        """See that there are the commands, and that the options are not those of the sweep itself."""
        missing = [command for command in ("sbatch", "squeue", "scancel") if shutil.which(command) is None]
        if missing:
            raise QueueError(
                f"Slurm needs the command {missing[0]}, and there is none on the PATH. Type the sweep on a "
                "machine that submits jobs, as a login node."
            )
        self.arguments  # noqa: B018 - their errors
        _slurm("squeue", "--noheader", "--jobs=1", answer_of_none=True)

    @cached_property
    def arguments(self) -> list[str]:
        """The options, one by one."""
        try:
            found = shlex.split(self.options)
        except ValueError as error:
            raise QueueError(
                f"--slurm-options should be options of sbatch. Found {self.options!r}: {error}."
            ) from None
        for text in found:
            option = SHORT.get(text[:2]) or text.partition("=")[0].removeprefix("--")
            if option in OURS and text.startswith("-"):
                raise QueueError(
                    f"--slurm-options may not have {text.partition('=')[0]}, which the sweep sets itself. "
                    "Others, as --partition, --time, --mem and --cpus-per-task, are passed on to sbatch."
                )
        return found

    @cached_property
    def most(self) -> int:
        """Elements of an array, at most: below MaxArraySize of the cluster."""
        with contextlib.suppress(QueueError):
            found = re.search(
                r"^MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config"), re.MULTILINE
            )
            if found and int(found[1]) > 1:
                return int(found[1]) - 1
        return 1000

    def submit(self, batch: Batch, limit: int | None) -> str:
        """Submit a job array; the handle is the number of the job."""
        file = batch.path / "array.sh"
        file.write_text(script(batch, limit), encoding="utf-8")
        printed = _slurm("sbatch", "--parsable", *self.arguments, str(file))
        return printed.strip().partition(";")[0]

    def states(self, handle: str) -> Mapping[int, State]:
        """The states of the elements, from squeue, and of those that it has forgotten from sacct."""
        listed = _slurm(
            *("squeue", "--noheader", "--array", "--states=all", f"--jobs={handle}", "--format=%K|%T|%r"),
            answer_of_none=True,
        )
        states = dict[int, State]()
        for line in listed.splitlines():
            index, state, reason = (part.strip() for part in [*line.split("|"), "", ""][:3])
            if index.isdecimal():
                states[int(index)] = state_of(state, reason)
        return states or self._remembered(handle)

    def _remembered(self, handle: str) -> Mapping[int, State]:
        """What the accounts of the cluster say."""
        states = dict[int, State]()
        with contextlib.suppress(QueueError):
            listed = _slurm("sacct", "-X", "-n", "-P", "-j", handle, "-o", "JobID,State")
            for line in listed.splitlines():
                id, _, state = line.partition("|")
                index = id.partition("_")[2]
                if index.isdecimal():
                    states[int(index)] = state_of(state.split(" ")[0], "")
        return states

    def cancel(self, handle: str) -> None:
        """Cancel all elements."""
        _slurm("scancel", handle, answer_of_none=True)


def state_of(state: str, reason: str) -> State:
    """What Slurm's state of a job means for a task."""
    if state in WAITING:
        return State("waiting", "" if reason in USUAL else reason)
    if state in RUNNING:
        return State("running")
    said = {"COMPLETED": "", "FAILED": f"FAILED {reason}"}.get(state, state)
    return State("ended", said, lost=state in LOST)


def script(batch: Batch, limit: int | None) -> str:
    """The script of a job array."""
    # Paths may have characters that mean something to Slurm: %j is the number of the job, for one.
    logs = str(batch.path / "logs").replace("%", "%%")
    throttle = "" if limit is None else f"%{limit}"
    command = " ".join(shlex.quote(part) for part in batch.argv("")[:-1])
    return f"""#!/bin/sh
# The runs of a sweep, {len(batch.tasks)} tasks. Made by `varangian sweep --slurm`, which waits for them.
#SBATCH --job-name={_plain(batch.name)}
#SBATCH --array=0-{len(batch.tasks) - 1}{throttle}
#SBATCH --ntasks=1
#SBATCH --output="{logs}/%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
export OMP_NUM_THREADS=1
exec {command} "$SLURM_ARRAY_TASK_ID"
"""


def _plain(name: str) -> str:
    return f"varangian-{re.sub('[^A-Za-z0-9._-]+', '-', name)[:40]}"


def _slurm(*command: str, answer_of_none: bool = False) -> str:
    """What a command of Slurm prints.

    Args:
        command: and its arguments.
        answer_of_none: whether a job that Slurm does not know is an answer, an empty one.
    """
    # The format of answers must not depend on the user's own settings of these commands.
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SQUEUE_", "SACCT_", "SLURM_TIME_"))
    } | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=PATIENCE,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise QueueError(f"Slurm has not answered in {PATIENCE:g} s.") from None
    except OSError as error:
        raise QueueError(f"{command[0]} cannot be started: {error.strerror or error}.") from None
    said = done.stderr.decode(errors="replace")
    if done.returncode == 0:
        return done.stdout.decode(errors="replace")
    if answer_of_none and "Invalid job id" in said:
        return ""
    reason = "; ".join(line.partition("error: ")[2] or line for line in said.splitlines() if line.strip())
    kind = QueueFullError if FULL.search(said) else QueueError
    raise kind(f"{command[0]} failed: {reason or f'exit code {done.returncode}'}.")
