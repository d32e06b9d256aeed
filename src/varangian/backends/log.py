"""Where the log of a process goes."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


@contextmanager
def logged_to(path: Path, level: int = logging.INFO) -> Generator[None]:
    """Append what this package logs to a file instead of showing it: the screen belongs to the progress."""
    ours = logging.getLogger("varangian")
    before = ours.level, ours.propagate
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    ours.addHandler(handler)
    ours.setLevel(level)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()
        ours.setLevel(before[0])
        ours.propagate = before[1]
