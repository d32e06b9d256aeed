"""Presence: tells the run which workers are connected, and logs who comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

from varangian.server.identity.sessions import Sessions
from varangian.structured_logs import event

log = logging.getLogger(__name__)

PRESENCE_CHECK_INTERVAL = 0.5
"""Seconds between two looks."""


class RunListener(Protocol):
    """Told who comes and goes; a `Coordinator` is one."""

    @property
    def round(self) -> int: ...
    @property
    def first(self) -> int: ...
    def absent(self, worker: str, /) -> None: ...
    def present(self, worker: str, /) -> None: ...
    def withdraw(self, worker: str, reason: str, /) -> None: ...


class Presence:
    """Compares which workers are connected with what the run was told.

    A worker that has never joined is waited for in the first round of this server, since it may be started
    late, and is absent in the rounds after it.
    """

    def __init__(self, sessions: Sessions, run: RunListener) -> None:
        self._sessions = sessions
        self._run = run
        self._absent = set[str]()

    def look(self) -> None:
        """Tell the run what has changed. To be called now and then, and when a worker joins."""
        present, known = self._sessions.present, self._sessions.joined
        for name in self._sessions.names:
            if name in present:
                self.note_call(name)
            elif name not in self._absent and (name in known or self._run.round > self._run.first):
                self._absent.add(name)
                left = name in known
                log.info(
                    "%s %s",
                    name,
                    "has left" if left else "has not joined yet",
                    extra=event("worker_left" if left else "worker_missing", worker=name),
                )
                self._run.absent(name)

    def note_call(self, name: str) -> None:
        """Tell the run that a worker is back, if it was absent: a round waits for whom it gives a model."""
        if name in self._absent:
            self._absent.remove(name)
            log.info("%s is connected again", name, extra=event("worker_returned", worker=name))
            self._run.present(name)

    def drop(self, name: str) -> None:
        """A worker has no session any more, and the run knows it."""
        self._absent.add(name)

    def admit(self, name: str) -> None:
        """A worker is a member of the run now, which takes it for absent."""
        self._absent.add(name)
        self.look()

    def forget(self, name: str) -> None:
        """A worker is no member of the run any more."""
        self._absent.discard(name)

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Call `look` now and then in this context."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PRESENCE_CHECK_INTERVAL)
            self.look()
