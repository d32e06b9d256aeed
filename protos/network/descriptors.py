"""File descriptors: how many a run needs, the limit of this process, and one in reserve."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BASE = 32
"""Descriptors of a process with gRPC besides connections: libraries, logs, pipes, files."""
WITH_DATA_CHANNEL = 3
"""Descriptors of a worker, at either end: its calls, and payloads up and down beside them."""
WITHOUT_DATA_CHANNEL = 1
"""Descriptors of a worker whose payloads travel with its calls."""
UNIDENTIFIED, DATA_CONNECTIONS = 64, 4
"""Connections to the data port of a server: without a ticket yet, and of each worker."""
ENOUGH = 1 << 16
"""Files where the system sets no limit."""


LOOP = 16
"""Descriptors that an event loop, and gRPC in it, open as they are made, and some more."""


def check_free(count: int = LOOP) -> None:
    """Check that so many more files can be opened.

    An event loop that cannot be made complains by tracebacks, and gRPC may then end the process.

    Raises:
        OSError: they cannot.
    """
    found = list[int]()
    try:
        while len(found) < count:
            found.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None
    finally:
        for descriptor in found:
            os.close(descriptor)


def raise_limit(needed: int) -> int:
    """Raise the soft limit of this process as far as is needed and allowed; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed if soft == resource.RLIM_INFINITY else soft
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections(workers: int) -> int:
    """The most connections to the gRPC port of a server: four for each worker, and some for others."""
    return 4 * workers + 32


def needed_descriptors(workers: int, data_channel: bool) -> int:
    """Descriptors of a process that hosts this many workers."""
    return BASE + workers * (WITH_DATA_CHANNEL if data_channel else WITHOUT_DATA_CHANNEL)


def server_descriptors(workers: int, data_channel: bool) -> int:
    """Descriptors of a server with this many workers whose ports have all the connections they may have."""
    beside = UNIDENTIFIED + DATA_CONNECTIONS * workers if data_channel else 0
    return BASE + connections(workers) + beside


def most_workers(limit: int) -> int:
    """The most workers that a server can have with so many files."""
    return max(
        0,
        (limit - server_descriptors(0, data_channel=True))
        // (server_descriptors(1, data_channel=True) - server_descriptors(0, data_channel=True)),
    )


def limit() -> int:
    """The limit of open files of this process, after raising it as far as possible."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return raise_limit(ENOUGH if hard == resource.RLIM_INFINITY else hard)


def describe_limit(workers: int, data_channel: bool) -> str:
    """The descriptors that a server needs and the limit, as a line for its log."""
    files = server_descriptors(workers, data_channel)
    needs = f"at most {connections(workers)} connections for calls, {files} open files"
    return f"{needs}; {limit()} are allowed"


def why_too_few(what: str, workers: int, data_channel: bool, least: int | None = None) -> str | None:
    """Why a process has too few descriptors with its limit fully raised; None if it has enough.

    Args:
        what: the process.
        workers: that it serves or hosts.
        data_channel: whether payloads travel on data connections.
        least: files that it needs; by default those of a process that hosts workers.
    """
    least = needed_descriptors(workers, data_channel) if least is None else least
    limit = raise_limit(least)
    if limit >= least:
        return None
    save = " or set server.data_port=null, which needs fewer," if data_channel else ""
    return (
        f"{what} needs up to {least} open files for {workers} workers, and this process may have {limit}. "
        f"Raise the limit with `ulimit -n {least}` in the shell that starts it,{save} or use fewer workers."
    )


class Spare:
    """A file descriptor in reserve, for when the process has no other left.

    `reading` gives it up for one read, and takes it again. Another thread may be faster at either; then the
    read fails as it would have, and the next call tries to have a spare one again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = _open_reserve()

    def reading(self, read: Callable[[], T]) -> T:
        """The result of `read`, also where all descriptors of the process are in use."""
        try:
            return read()
        except Exception as error:
            if not exhausted(error):
                raise
        with self._lock:
            if self._held is not None:
                os.close(self._held)
            try:
                return read()
            finally:
                self._held = _open_reserve()

    def close(self) -> None:
        with self._lock:
            if self._held is not None:
                os.close(self._held)
            self._held = None


def exhausted(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised for, says that there are no more file descriptors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _open_reserve() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
