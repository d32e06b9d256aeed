"""Run folders that have the identity of their run as a name, shared by all sweeps with one output folder.

<id>/           a complete run; with error.json in place of result.json one that ended on an error
<id>.running/   a run in progress; left by a process that was killed if nobody holds the lock, and then it
                is removed and done again, from its first round
.<id>.lock      locked by the process that carries the run out. It is a file, open for writing, and not the
                folder: network file systems lock nothing else
.sweeps.lock    held for a moment by each process that makes or renames a folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian import __version__
from varangian.config.yaml_text import dump
from varangian.experiments.results.run import CONFIG, ERROR, MANIFEST, RESULT, RUNNING
from varangian.files import write_atomically
from varangian.launch import RunError, RunResult
from varangian.launch.checkpoints.folder import FOLDER, WORKERS
from varangian.launch.checkpoints.lock import NAME as LOCK

SWEEPS_LOCK = ".sweeps.lock"
OF_GOING_ON = (FOLDER, WORKERS)
"""The folders of a run from which it would go on."""
PATIENCE = 2.0
"""Seconds for a process that was killed to let go of its folder."""


class RunTaken(Exception):
    """Another process carries this run out at the moment."""


class RunComplete(Exception):
    """This run has been carried out already."""


@dataclass(frozen=True)
class RunFolders:
    """The run folders below one output folder."""

    output: Path

    def path(self, id: str) -> Path:
        """The folder of a complete run."""
        return self.output / id

    def running(self, id: str) -> Path:
        """The folder of a run in progress."""
        return self.output / f"{id}{RUNNING}"

    def lock(self, id: str) -> Path:
        """The file that is locked while a process carries a run out."""
        return self.output / f".{id}.lock"

    def is_complete(self, id: str) -> bool:
        return (self.path(id) / RESULT).is_file()

    def result(self, id: str) -> dict[str, Any] | None:
        """The result of a complete run; None of one that is not."""
        return _read(self.path(id) / RESULT)

    def error(self, id: str) -> str:
        """The sentence that a run ended with; empty if it did not end on an error."""
        return str((_read(self.path(id) / ERROR) or {}).get("error", ""))

    def is_running(self, id: str) -> bool:
        """Whether a process carries this run out at the moment."""
        if not self.running(id).is_dir():
            return False
        try:
            os.close(_lock(self.lock(id), os.O_RDWR))
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def check(self, ids: Iterable[str]) -> None:
        """See that no folder of these runs is of another version, or of something else.

        Raises:
            RunError: one is; nothing has been changed.
        """
        for id in ids:
            path = self.path(id)
            if not path.exists():
                continue
            found = _read(path / MANIFEST) or _read(path / ERROR)
            if found is None or not ((path / RESULT).exists() or (path / ERROR).exists()):
                raise RunError(
                    f"{path}: should be a complete run, with result.json or error.json. Move it elsewhere, "
                    "or choose another folder with --output DIR."
                )
            if (version := found.get("varangian")) != __version__:
                raise RunError(
                    f"{path}: was made by varangian {version}, and this is {__version__}: their numbers "
                    "should not stand in one table. Choose another folder with --output DIR."
                )

    @contextmanager
    def claim(self, id: str) -> Generator[Claim]:
        """Carry a run out in this process; without `Claim.finish` nothing of it is left.

        Raises:
            RunTaken: another process does.
            RunComplete: it has been done.
            OSError: the folder cannot be made.
        """
        path = self.running(id)
        with self.alone():
            if self.is_complete(id):
                raise RunComplete(id)
            try:
                lock = _lock(self.lock(id), os.O_RDWR | os.O_CREAT)
            except BlockingIOError:
                raise RunTaken(id) from None
            try:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path)
                path.mkdir(mode=0o700)
            except OSError:
                os.close(lock)
                raise
        claim = Claim(self, id, path)
        try:
            yield claim
        finally:
            if not claim.finished:
                shutil.rmtree(path, ignore_errors=True)
            with self.alone():  # or another process could lock a file that is no more there
                self.lock(id).unlink(missing_ok=True)
                os.close(lock)

    def clear(self, id: str) -> None:
        """Remove what a process that was ended has left of a run; waits a little for that to end."""
        until = time.monotonic() + PATIENCE
        while self.is_running(id) and time.monotonic() < until:
            time.sleep(PATIENCE / 20)
        with contextlib.suppress(RunTaken, RunComplete, OSError), self.claim(id):
            pass

    @contextmanager
    def alone(self) -> Generator[None]:
        """Let no other process make or rename a folder meanwhile."""
        self.output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.output / SWEEPS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@dataclass
class Claim:
    """A run that this process carries out."""

    folders: RunFolders
    id: str
    path: Path
    """The folder of the run while it is in progress."""
    finished: bool = False

    def finish(self, result: RunResult) -> None:
        """Give the folder its name for good: the run is complete."""
        final = self.folders.path(self.id)
        # The result names the folder in which it will be found.
        plain = dataclasses.replace(result, folder=final).plain()
        write_atomically(self.path / RESULT, _json(plain))
        self._rename()

    def fail(self, settings: Mapping[str, Any], error: str, kind: str) -> None:
        """The same for a run that ended on an error.

        Args:
            settings: of the run, resolved.
            error: a sentence.
            kind: the type of the error.
        """
        if not (self.path / CONFIG).exists():
            write_atomically(self.path / CONFIG, dump(settings).encode())
        found = {"error": error, "kind": kind, "settings": dict(settings), "varangian": __version__}
        write_atomically(self.path / ERROR, _json(found))
        (self.path / RESULT).unlink(missing_ok=True)
        self._rename()

    def _tidy(self) -> None:
        """Remove what a run needs to go on: one of a sweep begins anew, and there are thousands."""
        for name in OF_GOING_ON:
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / LOCK).unlink(missing_ok=True)

    def _rename(self) -> None:
        self._tidy()
        final = self.folders.path(self.id)
        with self.folders.alone():
            if (final / ERROR).exists() and not (final / RESULT).exists():
                shutil.rmtree(final)
            self.path.rename(final)
        self.finished = True


def _lock(path: Path, flags: int) -> int:
    """The descriptor of a file that is locked for as long as it is open.

    Raises:
        BlockingIOError: another process has locked it.
        FileNotFoundError: there is no such file.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None when there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, default=str) + "\n").encode()
