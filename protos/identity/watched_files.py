"""Files that are read again when they change: lists and certificates that are replaced while programs run.

A change counts as seen only after a good read of it. Until then the read is tried again every second, and
the last good content stays in force.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from varangian.protos.network.descriptors import Spare

T = TypeVar("T")
Version: TypeAlias = tuple[tuple[int, ...] | None, ...]

FILE_CHECK_INTERVAL = 1.0
"""Seconds between two looks at the files."""
RACY = 2.0
"""Seconds after its last change for which a file may change again without a new time stamp."""


class Change(Enum):
    """The result of looking at the files."""

    NONE = auto()
    CHANGED = auto()
    """There is new content."""
    FAILED = auto()
    """Reading failed, for the first time or for another reason than before."""
    RECOVERED = auto()
    """Reading works again, and the contents are unchanged."""


@dataclass(frozen=True)
class Failure:
    """A failure to read the files."""

    error: Exception
    since: float
    """Seconds since 1970 of the first failure in a row."""
    began: float
    """The same moment on the clock of the reader."""
    missing: bool
    """Whether a file is not there."""


class WatchedFiles(Generic[T]):
    """The content of some files, as of their last good read. Any thread may look.

    Args:
        paths: the files.
        read: reads all of them; raises OSError or ValueError where they are no use.
        spare: a file descriptor for when the process has no other left.
        value: what they say now, if they were read a moment ago.
        clock: seconds from any start.
        wall: seconds since 1970.

    Raises:
        OSError, ValueError: the first read fails.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        spare: Spare,
        *,
        value: T | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._spare = spare
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._looked = clock()
        seen = self._version()
        self.value: T = spare.reading(read) if value is None else value
        self._seen = self._version_to_remember(seen)
        self.failure: Failure | None = None

    @property
    def missing_for(self) -> float:
        """Seconds for which a file has been missing."""
        failure = self.failure
        return self._clock() - failure.began if failure is not None and failure.missing else 0.0

    def look(self) -> Change:
        """Read the files again if they have changed; at most once a second, and by one thread at a time."""
        if self._clock() - self._looked < FILE_CHECK_INTERVAL or not self._lock.acquire(blocking=False):
            return Change.NONE
        try:
            self._looked = self._clock()
            version = self._version()
            if version == self._seen and self.failure is None:
                return Change.NONE
            return self._read_again(version)
        finally:
            self._lock.release()

    def _read_again(self, version: Version) -> Change:
        try:
            value = self._spare.reading(self._read)
        except (OSError, ValueError) as error:
            return self._record_failure(error)
        before, failed = self.value, self.failure is not None
        self.value, self.failure, self._seen = value, None, self._version_to_remember(version)
        if value != before:
            return Change.CHANGED
        return Change.RECOVERED if failed else Change.NONE

    def _record_failure(self, error: Exception) -> Change:
        before = self.failure
        missing = any(not path.exists() for path in self._paths)
        since, began = (before.since, before.began) if before else (self._wall(), self._looked)
        if before is not None and before.missing != missing:
            began = self._looked
        self.failure = Failure(error, since, began, missing)
        return Change.NONE if before is not None and str(before.error) == str(error) else Change.FAILED

    def _version(self) -> Version:
        """A value that changes whenever the files do."""
        return tuple(_stamp(path) for path in self._paths)

    def _version_to_remember(self, version: Version) -> Version | None:
        """The version, or None while a file may still change without another time stamp."""
        latest = max((stamp[CHANGED_AT] for stamp in version if stamp), default=0)
        return None if abs(self._wall() - latest / 1e9) < RACY else version


CHANGED_AT = 2
"""The entry of a stamp that is the time of the last change, in nanoseconds."""


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size
