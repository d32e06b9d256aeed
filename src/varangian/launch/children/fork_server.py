"""The fork server: a process that imports torch once and forks the worker processes.

Nothing heavy is imported here, so that a command can start it first and import the libraries meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType

from varangian.launch.output.temporary_folder import hold_sockets

SAFE_PATH = "PYTHONSAFEPATH"
"""The variable that keeps the current folder from the front of Python's path."""


def context() -> SpawnContext | ForkServerContext:
    """A fork server where there is one: forking this process, with its threads, would not be safe."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["varangian.launch.children.preload"])
    return found


def start() -> None:
    """Start the fork server if it is not running; returns at once."""
    if isinstance(context(), ForkServerContext):
        hold_sockets()
        with _without_main(None), _libraries_first():
            forkserver.ensure_running()


def start_process(process: BaseProcess, argument: object) -> None:
    """Start a process of `context()`; takes as long as the imports of the fork server, the first time.

    Args:
        process: to start.
        argument: what it is given; if that refers to the main script of this process, the script is
            imported in the child.
    """
    with _without_main(argument), _libraries_first():
        process.start()


@contextmanager
def _without_main(argument: object) -> Generator[None]:
    """Keep children from importing the main script of this process again, unless the argument needs it.

    So a script may start a run without `if __name__ == "__main__"`, unless it defines a part of the task.
    """
    main = sys.modules["__main__"]
    if b"__main__" not in bytes(ForkingPickler.dumps(argument)):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _libraries_first() -> Generator[None]:
    """Set the environment so that no file of the current folder hides a library from the fork server."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
