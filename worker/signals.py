"""Signal handling of a process of workers: cancel its tasks, and after a while end it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

SIGNALLED = 128
"""Plus the number of the signal: the exit code, as shells have it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.5
"""Seconds until tasks that go on are cancelled once more: an await may swallow a cancellation."""
EXIT_GRACE = 5.0
"""Seconds until the process ends without them, for example in the middle of a computation."""


class SignalHandling:
    """The action of a signal.

    Args:
        leave: ends the process at once with an exit code.
        again: seconds between two cancellations.
        grace: seconds until `leave` is called.
    """

    def __init__(
        self, leave: Callable[[int], None] = os._exit, again: float = AGAIN, grace: float = EXIT_GRACE
    ) -> None:
        self.code: int | None = None
        """The exit code, once there was a signal."""
        self._leave, self._again, self._grace = leave, again, grace
        self._timer: threading.Timer | None = None
        self._tasks: Callable[[], Iterable[asyncio.Task[object]]] = tuple

    def __enter__(self) -> SignalHandling:
        return self

    def __exit__(self, *error: object) -> None:
        """The process is about to end by itself."""
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def of(self, tasks: Callable[[], Iterable[asyncio.Task[object]]]) -> Generator[None]:
        """Signals cancel these tasks here, except those signals that the process was told to ignore."""
        on_main_thread = threading.current_thread() is threading.main_thread()
        numbers = [n for n in SIGNALS if on_main_thread and signal.getsignal(n) is not signal.SIG_IGN]
        handlers = {number: signal.getsignal(number) for number in numbers}
        loop, self._tasks = asyncio.get_running_loop(), tasks
        for number in numbers:
            loop.add_signal_handler(number, self.begin, number)
        try:
            yield
        finally:
            self._tasks = tuple
            for number, handler in handlers.items():
                if loop.remove_signal_handler(number) and handler is not None:
                    signal.signal(number, handler)

    def begin(self, number: int) -> None:
        """A signal has come. A second one leaves nothing time to end."""
        if self.code is not None:
            self._leave(self.code)
            return
        self.code = SIGNALLED + number
        self._timer = threading.Timer(self._grace, self._leave, (self.code,))
        self._timer.daemon = True
        self._timer.start()
        self._cancel()

    def _cancel(self) -> None:
        tasks = [task for task in self._tasks() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            asyncio.get_running_loop().call_later(self._again, self._cancel)
