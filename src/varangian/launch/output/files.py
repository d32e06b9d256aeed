"""Files of a run that are appended to line by line, and new folders."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from varangian.launch.output.queued_writer import LINGER, RECORDS, RETRY, Descriptor, QueuedWriter, Warn


class Record(Descriptor):
    """A file that lines are appended to. It says once when somebody has deleted it."""

    def __init__(self, path: Path, warn: Warn) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        super().__init__(os.open(path, flags, 0o666))
        self._path, self._warn = path, warn
        self._look_at = 0.0
        self._deleted = False

    def write(self, data: bytes) -> tuple[bytes, OSError | None]:
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

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
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
