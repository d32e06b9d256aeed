"""The thread that hands the record of each round to a function of the user.

The run goes on meanwhile: a function that is slow, hangs or fails costs records of its own and nothing of
the run. Whatever it raises is said once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from varangian.launch.result import Note
from varangian.plugins import describe_error
from varangian.server.observability.record import RoundRecord

RECORDS = 1000
"""Records that may wait for the function; after that the oldest are left out."""
SOON = 2.0
"""Seconds of waiting after which it is said what is waited for."""


class RoundCallback:
    """A function of the user that takes the record of each round, in order, in a thread of its own."""

    def __init__(self, function: Callable[[RoundRecord], object], note: Note) -> None:
        self._function, self._note = function, note
        self._queue = deque[RoundRecord]()
        self._changed = threading.Condition()
        self._closing = False
        self._rounds = self._lost = self._failed = 0
        self._thread = threading.Thread(target=self._follow, name="varangian-on-round", daemon=True)
        self._thread.start()

    def observe(self, record: RoundRecord) -> None:
        """Queue a record; returns at once."""
        with self._changed:
            self._rounds += 1
            self._queue.append(record)
            if len(self._queue) > RECORDS:
                self._queue.popleft()
                self._lost += 1
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Wait until the function has taken all records, and say what it has not."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + seconds
        self._thread.join(min(SOON, seconds))
        if self._thread.is_alive() and seconds > SOON:
            self._note(f"waiting for `on_round`, at most {seconds:.0f} s")
            self._thread.join(max(0.0, until - time.monotonic()))
        left = 0
        if self._thread.is_alive():
            with self._changed:
                left = len(self._queue)
                self._queue.clear()
            self._note("warning: `on_round` has not taken the end of the run in time")
        if lost := self._lost + left:
            self._note(f"warning: `on_round` was not called for {lost} of {self._rounds} rounds")
        if self._failed:
            self._note(f"warning: `on_round` failed in {self._failed} of {self._rounds} rounds")

    def _follow(self) -> None:
        while (record := self._next()) is not None:
            try:
                self._function(record)
            except BaseException as error:  # its thread has nobody else to tell
                self._failed += 1
                if self._failed == 1:
                    what = f"`on_round` failed in round {record.round}: {describe_error(error)}"
                    self._note(f"warning: {what}. The run goes on")

    def _next(self) -> RoundRecord | None:
        """The next record; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue.popleft() if self._queue else None
