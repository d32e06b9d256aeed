"""A temporary folder of this process, removed when it ends; or by the next run, when it was killed."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from functools import cache
from multiprocessing import process
from pathlib import Path

PREFIX = "varangian."
YOUNG = 60.0
"""Seconds after which a folder that nobody holds has been left: a younger one may not be locked yet."""


@cache
def temporary_folder() -> Path:
    """The folder, readable by its owner only. It is locked for as long as this process lives."""
    clear_leftovers()
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    _lock(path)
    atexit.register(_remove, path, os.getpid())
    return path


def discard() -> None:
    """Remove the folder, for a process that ends without the usual farewells."""
    if temporary_folder.cache_info().currsize:
        _remove(temporary_folder(), os.getpid())


def clear_leftovers() -> None:
    """Remove what processes that were killed have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            state = path.lstat()
            ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
            if ours and state.st_mtime < time.time() - YOUNG:
                descriptor = _lock(path)  # an error when its process lives, in whatever container
                shutil.rmtree(path)
                os.close(descriptor)


def hold_sockets() -> None:
    """Let the sockets of multiprocessing lie there, too, in place of a folder that a kill leaves behind."""
    config = getattr(process.current_process(), "_config", None)
    if isinstance(config, dict):
        config.setdefault("tempdir", str(temporary_folder()))


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
