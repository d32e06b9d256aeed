"""A server that works in a thread of this process, and what a program may ask of it meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from varangian.launch.output.run_result import RunResult
from varangian.launch.result import RunError
from varangian.protos.network.descriptors import check_free
from varangian.serving.work import Work


class Running:
    """A server at work, as `varangian.Server.start` gives it; a context manager stops it in the end.

    with server.start("127.0.0.1:0") as running:
        ...                                     # workers connect to running.address
        result = running.result()
    """

    def __init__(self, work: Work, token: Callable[[str], str]) -> None:
        self._work, self._token = work, token
        self._result = Future[RunResult]()
        self._told = False
        """Whether somebody was given the result, or the error."""
        self._ready = Future[str]()
        work.when_ready(self._ready.set_result)
        check_free()
        self._thread = threading.Thread(target=self._run, name="varangian-server")
        self._thread.start()
        try:
            self._address = self._ready.result()
        except BaseException:
            self.stop("it was interrupted before it began")
            self._thread.join()
            raise

    def _run(self) -> None:
        try:
            result = asyncio.run(self._work.carry_out())
        except BaseException as error:
            found = error if isinstance(error, Exception) else RunError(f"the server ended: {error!r}")
            if not self._ready.done():
                self._ready.set_exception(found)
            self._result.set_exception(found)
        else:
            self._result.set_result(result)

    @property
    def address(self) -> str:
        """`host:port` where workers connect."""
        return self._address

    @property
    def folder(self) -> Path:
        """The run folder."""
        folder = self._work.folder
        assert folder is not None
        return folder

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self._result.done()

    def token(self, name: str) -> str:
        """As `Server.token`."""
        return self._token(name)

    def stop(self, reason: str = "stopped by the program") -> None:
        """End the run after the round in hand, and tell the workers that it is over; returns at once."""
        self._work.stop(reason)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the end of the run.

        Raises:
            TimeoutError: it is not over after so many seconds.
            RunError: it has ended on an error.
        """
        self._result.exception(timeout)
        self._told = True
        return self._result.result()

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the run if it goes on, and wait for its end; an error of it that nobody saw is raised."""
        if not self.done:
            self.stop("stopped by the program")
        self._thread.join()
        if kind is None and not self._told:
            self.result()

    def __repr__(self) -> str:
        return f"<varangian server at {self._address}, {'over' if self.done else 'running'}>"
