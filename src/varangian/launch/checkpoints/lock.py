"""The lock of a run folder: one server at a time works in it, and each start has a number, its epoch.

The lock is `flock` on a file, which a process loses with its life. The file has a line for each start and
for each orderly end: who works in the folder, and since when.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varangian import files
from varangian.launch.result import Note, RunError

NAME = "lock"
BOOT = Path("/proc/sys/kernel/random/boot_id")


class FolderLock:
    """The lock of a run folder, held by this process; made by `take`."""

    def __init__(self, path: Path, descriptor: int, known: Mapping[str, Any]) -> None:
        self._path, self._descriptor, self._known = path, descriptor, known

    @property
    def epoch(self) -> int:
        """Starts of the run before this one."""
        epoch: int = self._known["epoch"]
        return epoch

    @classmethod
    def take(
        cls,
        folder: Path,
        note: Note,
        *,
        force: bool = False,
        least: int = 0,
        command: list[str] | None = None,
    ) -> FolderLock:
        """Lock a folder; what is said of it is on the disk when this returns.

        Args:
            folder: of the run, which exists.
            note: takes a sentence about a server that ended without an orderly end.
            force: whether a server on another machine is taken to have ended.
            least: the least epoch, as of a checkpoint that is there.
            command: that started this process; by default its own.

        Raises:
            RunError: another server works in the folder, or the file cannot be written.
        """
        path = folder / NAME
        try:
            descriptor = _open(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            alone = _lock(descriptor)
            before = _last(descriptor)
            known = _this_process(command or sys.argv)
            if alone is False or (before is not None and _may_live(before, known, alone is None)):
                raise RunError(f"{_who(before)} works in {folder}; stop it, or wait until it has ended")
            if before is not None and not _is_known_dead(before, known) and not force:
                raise RunError(
                    f"{_who(before)} works in {folder}, on another machine; stop it, or wait until it has "
                    "ended. If that server has ended without saying so, add --force"
                )
            if before is not None and before["ended"] is None:
                note(f"{_who(before)} worked in {folder} and ended without saying so; this one takes over")
            known["epoch"] = max(least, 0 if before is None else before["epoch"] + 1)
            _append(descriptor, known)
        except OSError as error:
            os.close(descriptor)
            raise _cannot_write(path, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, known)

    def restore(self) -> None:
        """Make the file again, and lock it, if it has gone with its folder.

        Raises:
            RunError: another server works in the folder by now.
            OSError: it cannot be written.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return
        descriptor = _open(self._path)
        try:
            if _lock(descriptor) is False:
                raise RunError(f"{_who(_last(descriptor))} works in {self._path.parent} by now")
            _append(descriptor, self._known)
        except BaseException:
            os.close(descriptor)
            raise
        before, self._descriptor = self._descriptor, descriptor
        os.close(before)

    def release(self) -> None:
        """Say that this server has ended, and let others in."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            _append(descriptor, {**self._known, "ended": _now()})
        except OSError:
            pass  # whoever comes next sees that this process is gone
        finally:
            os.close(descriptor)


def has_ended(folder: Path) -> bool:
    """Whether the last server that worked in a folder said that it ended; also where there was none."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        last = _last(descriptor)
    finally:
        os.close(descriptor)
    return last is None or last["ended"] is not None


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written: {error.strerror or error}. It says who works in the folder")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _this_process(command: list[str]) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "host": socket.gethostname(),
        "boot": boot(),
        "began": _now(),
        "epoch": 0,
        "command": command,
        "ended": None,
    }


def boot() -> str | None:
    """The start of the system of this machine, which its containers share; None where it does not say."""
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return None


def started(pid: int) -> str | None:
    """The time at which a process started, in ticks since that of the system; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _may_live(before: Mapping[str, Any], known: Mapping[str, Any], without_locks: bool) -> bool:
    """Whether the server before lives, as far as its process tells where the lock does not."""
    here = before["ended"] is None and before["boot"] == known["boot"] and before["host"] == known["host"]
    other = before["pid"] != known["pid"]
    return without_locks and here and other and started(before["pid"]) == before["started"] is not None


def _is_known_dead(before: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether the server before cannot live where this process has the lock.

    A lock is for one machine, with its containers; one of a folder that machines share may be for each.
    """
    return before["ended"] is not None or before["boot"] == known["boot"] or before["host"] == known["host"]


def _last(descriptor: int) -> dict[str, Any] | None:
    """The last whole line; None if there is none."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    for line in reversed(content.splitlines()):
        try:
            match found := json.loads(line):
                case {"pid": int(), "epoch": int(), "host": str(), "began": str()}:
                    return {"boot": None, "started": None, "ended": None, **found}
                case _:
                    continue
        except ValueError:
            continue
    return None


def _append(descriptor: int, known: Mapping[str, Any]) -> None:
    # After a line that was cut off there is no line feed.
    os.write(descriptor, f"\n{json.dumps(known)}\n".encode())
    files.fsync(descriptor)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _who(known: Mapping[str, Any] | None) -> str:
    if known is None:
        return "another server"
    began = str(known["began"])
    return f"another server (process {known['pid']} on {known['host']}, since {began[:10]} {began[11:16]})"
