"""Output that never blocks its caller: a thread writes from a bounded queue to a file, pipe or terminal.

Whoever prints or records does so on an event loop that must go on answering. So `write` only queues text.
What happens when the other end does not keep up, or cannot take it:

the reader is slow or has stopped    the queue fills, then its oldest lines are dropped and counted
the disk is full, or fails           one warning; the lines stay queued and are tried again every second
the reader has gone                  one warning; the rest is discarded
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol, TextIO

PROGRESS = 1 << 20
"""Bytes of progress that may wait for a terminal or a pipe."""
RECORDS = 32 << 20
"""Bytes of records that may wait for a disk."""
BATCH = 64 << 10
"""Bytes that are written at once."""
LINGER = 0.1
"""Seconds for which records of rounds are collected."""
RETRY = 1.0
"""Seconds between two attempts to write to a disk that had no room."""
DRAIN = 5.0
"""Seconds that the end of a run waits for what is queued."""
GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ESHUTDOWN)
"""Errors after which no attempt can succeed."""

Warn = Callable[[str], None]


class Sink(Protocol):
    """The destination of bytes."""

    def write(self, data: bytes, /) -> tuple[bytes, OSError | None]:
        """Write; returns what is still to be written, and why it could not be.

        After an error either nothing of `data` is in the file, or what is returned continues what is there.
        """
        ...


class Descriptor:
    """A file descriptor. Lines are whole in a regular file, unless others write to it at the same time."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: bytes) -> tuple[bytes, OSError | None]:
        done = 0
        while done < len(data):
            try:
                done += os.write(self.descriptor, data[done:])
            except BlockingIOError:  # whoever gave us this descriptor made it non-blocking
                poll = select.poll()
                poll.register(self.descriptor, select.POLLOUT)
                poll.poll(1000 * RETRY)
            except OSError as error:
                return (data if self._undone(done) else data[done:]), error
        return b"", None

    def _undone(self, done: int) -> bool:
        """Take back the beginning of what could not be written to the end; whether that was possible."""
        if not done:
            return True
        try:
            state, end = os.fstat(self.descriptor), os.lseek(self.descriptor, 0, os.SEEK_CUR)
            if not stat.S_ISREG(state.st_mode) or state.st_size != end:
                return False
            os.ftruncate(self.descriptor, end - done)
            os.lseek(self.descriptor, end - done, os.SEEK_SET)
        except OSError:
            return False
        return True


class Stream:
    """A text stream without a descriptor: of a notebook, or a test."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> tuple[bytes, OSError | None]:
        try:
            self._stream.write(data.decode())
            self._stream.flush()
        except OSError as error:
            return data, error
        except ValueError as error:  # it is closed
            return data, OSError(errno.EBADF, str(error))
        return b"", None


class QueuedWriter:
    """Text to a sink, by a thread.

    Args:
        sink: where it goes.
        name: of it, for the warning.
        warn: takes the warning; called from the thread.
        limit: bytes that may wait. One line more may be in the thread's hands.
        linger: seconds that the thread waits for more after a line, so that lines which come fast do not
            wake it one by one.
        gap: what to write in the place of this many lines that were dropped.
        encoding: of the text; characters that it lacks are escaped.
        terminal: whether the sink is one.
    """

    def __init__(
        self,
        sink: Sink,
        name: str,
        warn: Warn,
        *,
        limit: int = PROGRESS,
        linger: float = 0.0,
        gap: Callable[[int], str] | None = None,
        encoding: str = "utf-8",
        terminal: bool = False,
    ) -> None:
        self.name, self.encoding, self.lost = name, encoding, 0
        self.lost_bytes = 0
        self.error: OSError | None = None
        """The reason why the last attempt to write failed; None if it did not."""
        self._sink, self._warn, self._limit, self._gap, self._terminal = sink, warn, limit, gap, terminal
        self._linger = linger
        self._hurried = 0
        """Callers of `drain`."""
        self._queue = deque[bytes]()
        self._size = 0
        self._hand = b""
        """The text that the thread is writing."""
        self._dropped = 0
        """Lines since the last one that was written."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._gone = self._failing = self._warned = False

    def write(self, text: str) -> int:
        """Queue whole lines; returns at once."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if data and not (self._gone or self._closing):
                self._queue.append(data)
                self._size += len(data)
                while self._size > self._limit and len(self._queue) > 1:
                    self._drop()
                self._started()
                if len(self._queue) == 1 or self._size >= BATCH:  # else the thread knows of some
                    self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """No effect: the thread writes as soon as it can, and `drain` waits for it."""

    def isatty(self) -> bool:
        return self._terminal

    def drain(self, seconds: float = DRAIN) -> bool:
        """Wait until all is written, or cannot be; whether it was in time."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._queue or self._hand) or self._failing, seconds)
            self._hurried -= 1
            return done and not self._failing

    def waiting(self) -> bytes:
        """Bytes that are not written yet."""
        with self._changed:
            return b"".join([self._hand, *self._queue])

    def close(self, seconds: float = DRAIN) -> bool:
        """Write what is queued, with a last attempt for what failed. False if the thread still hangs."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
        with self._changed:
            while self._queue:
                self._drop()
            return self._thread is None or not self._thread.is_alive()

    def _started(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"write {self.name}", daemon=True)
            self._thread.start()

    def _drop(self) -> None:
        data = self._queue.popleft()
        self._size -= len(data)
        lines = data.count(b"\n")
        self._dropped += lines
        self.lost += lines
        self.lost_bytes += len(data)

    def _run(self) -> None:
        while self._hand or self._next():
            last = self._closing
            self._hand, error = self._sink.write(self._hand)
            self.error = error
            if error is None:
                self._failing = False
                continue
            self._fail(error)
            with self._changed:
                if last or self._gone:
                    self._give_up()
                    return
                self._failing = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing, RETRY)

    def _give_up(self) -> None:
        self.lost += self._hand.count(b"\n")
        self.lost_bytes += len(self._hand)
        self._hand = b""
        while self._queue:
            self._drop()
        self._changed.notify_all()

    def _next(self) -> bool:
        """Take some whole lines in hand; False once the writer is closed and all is written."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._linger:
                self._changed.wait_for(
                    lambda: self._closing or self._hurried or self._size >= BATCH, self._linger
                )
            parts = [self._gap(self._dropped).encode()] if self._gap and self._dropped else []
            self._dropped = 0
            size = 0
            while self._queue and (not size or size + len(self._queue[0]) <= BATCH):
                part = self._queue.popleft()
                self._size -= len(part)
                size += len(part)
                parts.append(part)
            self._hand = b"".join(parts)
            return bool(parts)

    def _fail(self, error: OSError) -> None:
        self._gone = self._gone or error.errno in GONE
        if self._warned:
            return
        self._warned = True
        what = "what it would have shown is left out" if self._gone else "the lines are tried again"
        reason = "its reader has gone" if error.errno == errno.EPIPE else error.strerror or str(error)
        self._warn(f"{self.name} cannot be written ({reason}); the run goes on, and {what}")


def writer(stream: TextIO, name: str, gap: Callable[[int], str] | None = None) -> QueuedWriter:
    """A writer to a stream of this process, as its standard output."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    sink = _sink(stream)
    if isinstance(sink, Stream):
        encoding = "utf-8"
    return QueuedWriter(sink, name, warn_on_stderr, gap=gap, encoding=encoding, terminal=stream.isatty())


def warn_on_stderr(text: str) -> None:
    """A warning to standard error, or to nobody if that cannot take it either."""
    if sys.stderr is not None:  # None: it was closed when the process began
        _sink(sys.stderr).write(f"warning: {text}\n".encode("ascii", "backslashreplace"))


def _sink(stream: TextIO) -> Sink:
    """The descriptor of a stream, after what was printed to it before; or else the stream."""
    if not isinstance(stream, io.TextIOWrapper):
        return Stream(stream)
    with contextlib.suppress(OSError):
        stream.flush()
    try:
        return Descriptor(stream.fileno())
    except OSError:
        return Stream(stream)
