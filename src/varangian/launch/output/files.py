"""Files of a run that are appended to line by line, and new folders."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

from varangian import files
from varangian.launch.output.queued_writer import LINGER, RECORDS, RETRY, Descriptor, QueuedWriter, Warn

TAIL = 64 << 10
"""Bytes that are read at once, from the end of a file, to find its last whole line."""


class Record(Descriptor):
    """A file that lines are appended to. It says once when somebody has deleted it.

    Args:
        path: of the file.
        warn: takes that sentence.
        again: whether the file may be there, with lines to go on after.
    """

    def __init__(self, path: Path, warn: Warn, *, again: bool = False) -> None:
        super().__init__(_open(path, again))
        self._path, self._warn = path, warn
        self._look_at = 0.0
        self._deleted = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> tuple[bytes, OSError | None]:
        with self._lock:
            left = super().write(data)
        if not self._deleted and time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + RETRY
            self._deleted = os.fstat(self.descriptor).st_nlink == 0
            if self._deleted:
                self._warn(
                    f"{self._path} has been deleted; the run goes on, and its record and its parameters "
                    "are saved at the end"
                )
        return left

    def content(self) -> bytes:
        """All that was written, also when the file has no name any more."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def restore(self) -> None:
        """Make the file again, with all its lines, if it is not in its place any more.

        Raises:
            OSError: there is no such folder, or no room.
        """
        with self._lock:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self.descriptor)):
                    return
                self._path.unlink()
            files.write_atomically(self._path, self.content())
            before, self.descriptor = self.descriptor, _open(self._path, again=True)
            os.close(before)
        self._deleted = False

    def sync(self) -> None:
        """Wait until the lines are on the disk, and the name of the file.

        Raises:
            OSError: they may be lost.
        """
        files.fsync(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _open(path: Path, again: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(path, flags | (0 if again else os.O_EXCL), 0o666)


def mend(path: Path) -> int:
    """Cut off a last line that was not written to its end; returns how many bytes it had.

    Raises:
        OSError: the file cannot be read or written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(descriptor).st_size
        end = size
        while end:
            start = max(0, end - TAIL)
            found = os.pread(descriptor, end - start, start).rfind(b"\n")
            end = start if found < 0 else start + found + 1
            if found >= 0:
                break
        if end < size:
            os.ftruncate(descriptor, end)
            files.fsync(descriptor)
        return size - end
    finally:
        os.close(descriptor)


def queued_record(record: Record, name: str, warn: Warn) -> QueuedWriter:
    """A writer to a record."""
    return QueuedWriter(record, name, warn, limit=RECORDS, linger=LINGER)


def make_folder(parent: Path, name: str) -> Path:
    """A new folder of this name, for its owner only; with a number after it where the name is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            attempt += 1
        else:
            return path


def make_at(path: Path) -> Path:
    """The folder of this path, made for its owner only if it does not exist.

    Raises:
        OSError: it cannot be made, or something is in it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise OSError(errno.ENOTEMPTY, f"{path.name} is not empty", str(path))
    return path
