"""Running a coroutine to its end, also from inside a running event loop such as that of a notebook.

A thread can run one event loop. Where one runs already, the coroutine gets a thread and a loop of its own,
and the caller waits. Signals reach the main thread only, so they are passed on from there.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Generic, TypeVar

from varangian.protos.network.descriptors import check_free
from varangian.worker.training.device import as_in_a_new_thread

T = TypeVar("T")
Interrupt = Callable[[str], None]
"""Called with the name of a signal, on the loop that should stop."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK = 0.1
"""Seconds between two looks of the main thread at signals: one that comes just before it waits would not
wake it."""


def run_to_completion(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a coroutine function, as `asyncio.run(main())` gives it, whether a loop runs or not.

    Raises:
        OSError: there are not enough file descriptors for an event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        check_free()
        with as_in_a_new_thread(), without_child_handler():
            return asyncio.run(main())
    check_free()
    thread = _LoopThread(main)
    with _pass_signals_on(thread):
        thread.start()
        thread.wait()
    return thread.outcome()


@contextmanager
def without_child_handler() -> Generator[None]:
    """Have no handler of SIGCHLD meanwhile, and none that code of the user leaves.

    The DataLoader of torch sets one that raises an error wherever the main thread is, as in the event loop
    of a server. Without it the loader itself finds that a process of its is gone, and raises there.
    """
    handled = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if handled else None
    if before is None:
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def interruptible(interrupt: Interrupt) -> Generator[None]:
    """Let the first signal call `interrupt`, if this is a thread of `run_to_completion`; else nothing."""
    thread = threading.current_thread()
    if not isinstance(thread, _LoopThread):
        yield
        return
    thread.interrupt = interrupt
    try:
        yield
    finally:
        thread.interrupt = None


class _LoopThread(threading.Thread, Generic[T]):
    """A thread with an event loop of its own, for one coroutine."""

    def __init__(self, main: Callable[[], Coroutine[Any, Any, T]]) -> None:
        super().__init__(name="varangian-run")
        self.interrupt: Interrupt | None = None
        self._main = main
        self._task: asyncio.Task[T] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._result: T
        self._error: BaseException | None = None
        self._cancelled = False

    def run(self) -> None:
        async def watched() -> T:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._cancelled:
                raise asyncio.CancelledError
            return await self._main()

        try:
            self._result = asyncio.run(watched())
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the coroutine is over; an interruption of the caller cancels it."""
        while self.is_alive():
            try:
                self.join(LOOK)
            except KeyboardInterrupt:
                self.cancel()

    def outcome(self) -> T:
        """The result of the coroutine; raises its error."""
        if isinstance(self._error, asyncio.CancelledError):
            raise KeyboardInterrupt from self._error
        if self._error is not None:
            raise self._error
        return self._result

    def ask(self, name: str) -> None:
        """Tell the coroutine of a signal, from another thread; cancel it where it takes none."""

        def tell() -> None:
            if self.interrupt is None:
                self._cancel()
            else:
                self.interrupt(name)

        self._call(tell)

    def cancel(self) -> None:
        """End the coroutine as soon as it can be, from another thread."""
        self._call(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _call(self, act: Callable[[], object]) -> None:
        if self._loop is None:  # the coroutine has not begun
            self._cancelled = True
            return
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(act)


@contextmanager
def _pass_signals_on(thread: _LoopThread[Any]) -> Generator[None]:
    """Pass the first signal on to the thread, and cancel it at the second; a third acts as without this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # None: set by something that is not Python
                signal.signal(number, handler)

    def first(number: int, frame: FrameType | None) -> None:
        del frame
        for each in SIGNALS:
            signal.signal(each, second)
        thread.ask(signal.Signals(number).name)

    def second(number: int, frame: FrameType | None) -> None:
        del number, frame
        restore()
        thread.cancel()

    for number in SIGNALS:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
