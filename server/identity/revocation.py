"""Revocation while a run goes on: ends the calls of a certificate and takes back what came with it.

Every second the files of the server's bundle are looked at, and read if they have changed; calls whose
certificate was revoked or has expired are ended; and a worker whose certificate was revoked is expelled:
its process counts as gone, and its vectors that are not used yet leave the run. A new certificate of the
same name is welcome at once.

A list that cannot be read leaves the last good one in force. A list that is gone is an error of whoever
runs the server; it ends the run after `GRACE`, in which a bundle may be replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from varangian.protos.identity.certificate import ShownCertificate
from varangian.protos.identity.watched_files import PAUSE
from varangian.server.identity.open_calls import OpenCalls
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security

log = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds for which a run goes on after its list of revoked certificates has disappeared."""
REASON = "its certificate was revoked"


class Told(Protocol):
    """Who has to know; a `Driver` is one."""

    def withdraw(self, worker: str, reason: str, /) -> None: ...
    def present(self, worker: str, /) -> None: ...


class Revocation:
    """The certificates of one run, from its start to its end.

    Args:
        roster: the workers, and who speaks for each.
        told: the run.
        expelled: called with each worker whose process is not taken for it any more.
        security: the bundle; None without TLS, where nothing is revoked.
        end: ends the run for a reason, in an orderly way.
    """

    def __init__(
        self,
        sessions: Sessions,
        told: Told,
        expelled: Callable[[str], None],
        security: Security | None,
        end: Callable[[str], None],
    ) -> None:
        self.standing = OpenCalls(sessions)
        self._sessions = sessions
        self._told = told
        self._expelled = expelled
        self._security = security
        self._end = end
        self._senders: dict[str, ShownCertificate] = {}
        """With which certificate the last vector of each worker came that was counted."""

    def counted(self, worker: str, shown: ShownCertificate | None) -> None:
        """A vector of this worker was counted."""
        if shown is not None:
            self._senders[worker] = shown

    def revoked(self) -> int:
        """How many certificates are on the list."""
        return 0 if self._security is None else len(self._security.revoked)

    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the bundle of the server just now, a sentence each."""
        return () if self._security is None else self._security.warnings()

    def look(self) -> None:
        """Do what has to be done about certificates that count no longer. To be called every second."""
        self.standing.end()
        expelled = self._sessions.expel()
        for worker in expelled:
            log.warning("security: %s is out: %s", worker, REASON)
            self._expelled(worker)
        sent = [worker for worker, shown in self._senders.items() if self._sessions.is_revoked(shown)]
        for worker in dict.fromkeys((*expelled, *sent)):
            self._senders.pop(worker, None)
            self._told.withdraw(worker, REASON)
            if worker in self._sessions.present:  # with another certificate
                self._told.present(worker)
        self._check_list()

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Look every second in this context."""
        if self._security is None:
            yield
            return
        task = asyncio.create_task(self._watch(self._security))
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self, security: Security) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            # A handshake in memory checks a new certificate: that is not for the event loop.
            await asyncio.to_thread(security.look)
            self.look()

    def _check_list(self) -> None:
        """End the run when the list is missing for too long: nobody could be revoked any more."""
        revoked = None if self._security is None else self._security.revoked
        if revoked is not None and revoked.failure is not None and revoked.missing_for >= GRACE:
            what = f"the list of revoked certificates has been missing for {GRACE:g} s"
            self._end(f"{what}. {revoked.failure.error}")
