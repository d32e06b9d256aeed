"""Logging to a file or to standard error without ever waiting for it.

A program that imports this package keeps its own set-up: the root logger is not touched, and the logger of
this package has a handler only while a run writes its file.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from varangian.launch.output.queued_writer import Descriptor, QueuedWriter, Warn, warn_on_stderr, writer
from varangian.structured_logs import Format, JsonFormatter, json_line, log_format

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
OF_PROGRAM = "%(asctime)s %(levelname)s %(message)s"


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


class _Shared:
    """The logger of this package while files are written, by one run or by several at the same time."""

    def __init__(self) -> None:
        self._lock, self._files = threading.Lock(), 0
        self._before = (logging.NOTSET, True)

    def begin(self, handler: logging.Handler, level: int) -> None:
        ours = logging.getLogger("varangian")
        with self._lock:
            if not self._files:
                self._before = ours.level, ours.propagate
            self._files += 1
            ours.addHandler(handler)
            ours.setLevel(level)
            ours.propagate = False

    def end(self, handler: logging.Handler) -> None:
        ours = logging.getLogger("varangian")
        with self._lock:
            self._files -= 1
            ours.removeHandler(handler)
            if not self._files:
                level, ours.propagate = self._before
                ours.setLevel(level)


_shared = _Shared()


@contextmanager
def log_to_file(
    path: Path, level: int = logging.INFO, warn: Warn = warn_on_stderr, form: Format | None = None
) -> Generator[None]:
    """Append what this package logs to a file instead of showing it: the screen belongs to the progress.

    Args:
        path: of the file, in a run folder.
        level: the least that is written.
        warn: is told once when the file cannot be written.
        form: of the lines; by default that of the environment.
    """
    form = form or log_format()
    descriptor = _open_for_append(path, warn)
    lines = QueuedWriter(Descriptor(descriptor), str(path), warn)
    handler = QueuedHandler(lines)
    handler.setFormatter(JsonFormatter(path.parent.name) if form == "json" else logging.Formatter(FORMAT))
    _shared.begin(handler, level)
    try:
        yield
    finally:
        _shared.end(handler)
        if lines.close():
            os.close(descriptor)
        handler.close()


def log_to_stderr(level: int, form: Format = "text") -> None:
    """Log to standard error, for a program of a cluster. An unread one loses its oldest lines.

    As JSON all events of this package are shown from `info` on: nothing else tells them there.
    """
    handler = QueuedHandler(writer(sys.stderr, "standard error", gap_as_json if form == "json" else _gap))
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(OF_PROGRAM))
    logging.basicConfig(level=level, handlers=[handler])
    if form == "json":
        logging.getLogger("varangian").setLevel(min(level, logging.INFO))
        logging.captureWarnings(True)


def gap_as_json(lost: int) -> str:
    """The line in place of those that were lost."""
    return json_line("warning", "lines_lost", f"{lost} lines were lost", {"lines": lost}) + "\n"


def _gap(lost: int) -> str:
    return f"... {lost} lines were lost\n"


def _open_for_append(path: Path, warn: Warn) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        warn(f"{path} cannot be written ({error.strerror}); the run goes on without it")
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
