"""Logging to a file or to standard error without ever waiting for it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from varangian.launch.output.queued_writer import Descriptor, QueuedWriter, Warn, warn_on_stderr, writer

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class QueuedHandler(logging.Handler):
    """Log records to a queued writer. Closing it waits for what is queued, not for long."""

    def __init__(self, to: QueuedWriter) -> None:
        super().__init__()
        self._to = to

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._to.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._to.close()
        super().close()


@contextmanager
def log_to_file(path: Path, level: int = logging.INFO, warn: Warn = warn_on_stderr) -> Generator[None]:
    """Append what this package logs to a file instead of showing it: the screen belongs to the progress.

    `warn` is told once when the file cannot be written.
    """
    ours = logging.getLogger("varangian")
    before = ours.level, ours.propagate
    descriptor = _open_for_append(path, warn)
    lines = QueuedWriter(Descriptor(descriptor), str(path), warn)
    handler = QueuedHandler(lines)
    handler.setFormatter(logging.Formatter(FORMAT))
    ours.addHandler(handler)
    ours.setLevel(level)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        if lines.close():
            os.close(descriptor)
        handler.close()
        ours.setLevel(before[0])
        ours.propagate = before[1]


def log_to_stderr(level: int) -> None:
    """Log to standard error, for a program of a cluster. An unread one loses its oldest lines."""
    handler = QueuedHandler(
        writer(sys.stderr, "standard error", lambda lost: f"... {lost} lines were lost\n")
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level, handlers=[handler])


def _open_for_append(path: Path, warn: Warn) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        warn(f"{path} cannot be written ({error.strerror}); the run goes on without it")
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
