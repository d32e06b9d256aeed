"""A batch: runs that are handed to an engine together, as tasks; and its folder, which all nodes share.

<output>/.engines/<engine>-<token>/
    batch.json     what it is: version, engine, the runs of each task
    handle         by which the engine knows it; there is none before the engine has taken it
    lock           held by the sweep that looks after it
    tasks/3.json   the settings of the runs of a task
    logs/3.log     what the program of a task prints, apart from its runs
    ended/<id>     how a run has ended, written by its task
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from varangian import __version__
from varangian.experiments.sweep.processes.job import Ending, Job
from varangian.files import write_atomically
from varangian.protos.text import escape

FOLDER = ".engines"
TASK = "varangian.experiments.sweep.engines.task"
LOG = 1 << 20
"""Bytes of a log that are read: its last ones."""
LAST_WORDS = 300
"""Characters of the log of a task that stand in an error."""


class BatchError(Exception):
    """A folder is not that of a batch of this version."""


@dataclass(frozen=True)
class Batch:
    """Runs that are handed to an engine together."""

    path: Path
    engine: str
    name: str
    """Of the sweep."""
    tasks: tuple[tuple[str, ...], ...]
    """The identities of the runs of each task."""
    command: tuple[str, ...] = field(default=(), repr=False)
    """That started the sweep."""

    @classmethod
    def write(cls, engine: str, name: str, tasks: Sequence[Sequence[Job]]) -> Batch:
        """Make the folder of a batch.

        Args:
            engine: its name.
            name: of the sweep.
            tasks: the jobs of each; all with one output folder and one command.

        Raises:
            OSError: it cannot be written.
        """
        first = tasks[0][0]
        path = first.output / FOLDER / f"{engine}-{secrets.token_hex(4)}"
        path.mkdir(parents=True, mode=0o700)
        for part in ("tasks", "logs", "ended"):
            (path / part).mkdir()
        ids = tuple(tuple(job.id for job in jobs) for jobs in tasks)
        batch = cls(path, engine, name, ids, first.command)
        for index, jobs in enumerate(tasks):
            settings = [dict(job.settings) for job in jobs]
            (path / "tasks" / f"{index}.json").write_text(json.dumps(settings), encoding="utf-8")
        content: dict[str, Any] = {"varangian": __version__, "engine": engine, "name": name, "tasks": ids}
        content["command"] = first.command
        write_atomically(path / "batch.json", json.dumps(content).encode())
        return batch

    @classmethod
    def read(cls, path: Path) -> Batch:
        """The batch of a folder.

        Raises:
            BatchError: it has none, or one of another version.
        """
        try:
            found: dict[str, Any] = json.loads((path / "batch.json").read_bytes())
            if (version := found["varangian"]) != __version__:
                raise BatchError(f"{path} was made by varangian {version}, and this is {__version__}")
            tasks = tuple(tuple(map(str, ids)) for ids in found["tasks"])
            return cls(path, found["engine"], found["name"], tasks, tuple(found["command"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BatchError(f"{path} should be the folder of a batch of a sweep: {error!r}") from error

    @property
    def output(self) -> Path:
        """The folder of run folders."""
        return self.path.parent.parent

    @property
    def ids(self) -> Iterator[str]:
        """All runs."""
        return (id for ids in self.tasks for id in ids)

    @property
    def handle(self) -> str:
        """By which the engine knows it; empty where it does not."""
        with contextlib.suppress(OSError):
            return (self.path / "handle").read_text(encoding="utf-8").strip()
        return ""

    def keep_handle(self, handle: str) -> None:
        """Remember by what the engine knows it."""
        write_atomically(self.path / "handle", f"{handle}\n".encode())

    def argv(self, index: str) -> tuple[str, ...]:
        """The command that carries a task out, from the folder in which the sweep was started.

        Args:
            index: the number of the task; or a variable of a shell, as it is.
        """
        return (sys.executable, "-P", "-m", TASK, str(self.path), index)

    def jobs(self, index: int) -> list[Job]:
        """The jobs of a task.

        Raises:
            BatchError: they cannot be read.
        """
        path = self.path / "tasks" / f"{index}.json"
        try:
            settings: list[dict[str, Any]] = json.loads(path.read_bytes())
            pairs = zip(self.tasks[index], settings, strict=True)
        except (OSError, ValueError, IndexError) as error:
            raise BatchError(f"{path} should have the settings of a task: {error!r}") from error
        return [Job(id, one, self.output, self.command) for id, one in pairs]

    def age(self) -> float:
        """Seconds since its folder was made; 0 where it is not there."""
        with contextlib.suppress(OSError):
            return time.time() - (self.path / "batch.json").stat().st_mtime
        return 0.0

    def has_ended(self, id: str) -> bool:
        """Whether a run has ended, as its task says."""
        return (self.path / "ended" / id).exists()

    def tell(self, ending: Ending) -> None:
        """Write how a run has ended, for the sweep."""
        write_atomically(self.path / "ended" / ending.id, json.dumps(asdict(ending)).encode())

    def endings(self, known: set[str]) -> Iterator[Ending]:
        """How runs have ended that are not known to have; of a folder that is gone, none."""
        try:
            names = [entry.name for entry in os.scandir(self.path / "ended")]
        except OSError:
            return
        for name in names:
            if name not in known and not name.startswith("."):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    yield Ending(**json.loads((self.path / "ended" / name).read_bytes()))

    def log(self, index: int) -> bytes:
        """The last part of what the program of a task has printed."""
        path = self.path / "logs" / f"{index}.log"
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG))
            return file.read(LOG)
        return b""

    def last_words(self, index: int) -> str:
        """The end of the log in one line, for an error."""
        words = " ".join(self.log(index).decode(errors="replace").split())
        return escape(words[-LAST_WORDS:], 4 * LAST_WORDS)

    def lock(self) -> int | None:
        """Take the batch into the care of this process: a descriptor to close; None if another has it."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def remove(self) -> None:
        """Remove the folder, and the one around it if it is the last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def batches(output: Path, engine: str) -> Iterator[Batch]:
    """The batches of an engine in an output folder; those of other versions are left alone."""
    with contextlib.suppress(OSError):
        for path in sorted((output / FOLDER).glob(f"{engine}-*")):
            with contextlib.suppress(BatchError):
                yield Batch.read(path)
