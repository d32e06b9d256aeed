"""Certificate revocation during a run: ends the calls of a certificate, and withdraws its vectors.

Every second the files of the server's bundle are read if they have changed; calls whose certificate was
revoked or has expired are ended, as a call may last for hours; and a worker whose certificate was revoked
leaves the run: its session ends, and its vectors that are not used yet are withdrawn. A new certificate of
the same name is accepted at once.

A list that cannot be read leaves the last good one in force. A missing list is an error of the operator; it
ends the run after `MISSING_LIST_GRACE`, in which a bundle may be replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from varangian.protos.errors import Refused
from varangian.protos.identity.certificate import PeerCertificate
from varangian.protos.identity.watched_files import FILE_CHECK_INTERVAL
from varangian.server.identity.presence import RunListener
from varangian.server.identity.sessions import Peer, Sessions
from varangian.server.identity.tls import Security
from varangian.structured_logs import event

log = logging.getLogger(__name__)

MISSING_LIST_GRACE = 60.0
"""Seconds for which a run goes on after its list of revoked certificates has disappeared."""
REASON = "its certificate was revoked"


@dataclass(eq=False)
class OpenCall:
    """An open call over TLS."""

    task: asyncio.Task[object]
    certificate: PeerCertificate
    name: str | None
    """The worker that makes it; None if somebody else does."""
    error: Refused | None = None
    """The error with which the server ends it."""


class OpenCalls:
    """The open calls of a server, and the certificate of each."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._calls = set[OpenCall]()

    @contextmanager
    def call(self, peer: Peer) -> Generator[None]:
        """While a call is open, which the current task serves.

        Raises:
            Refused: `end` has ended the call.
        """
        task, certificate = asyncio.current_task(), self._sessions.certificate(peer)
        if task is None or certificate is None:
            yield
            return
        call = OpenCall(task, certificate, self._sessions.worker_name(peer))
        self._calls.add(call)
        try:
            yield
        except asyncio.CancelledError:
            # Unless gRPC has cancelled it as well: then there is nobody to answer.
            if call.error is None or task.uncancel():
                raise
            raise call.error from None
        finally:
            self._calls.discard(call)

    def end(self) -> None:
        """End the calls of workers that were expelled, or whose certificate was revoked or has expired."""
        for call in [call for call in self._calls if call.error is None]:
            expelled = None if call.name is None else self._sessions.why_expelled(call.name)
            call.error = expelled or self._sessions.why_invalid(call.certificate)
            if call.error is not None:
                call.task.cancel()


class Revocation:
    """Revocation in one run.

    Args:
        sessions: of its workers.
        run: what withdraws the vectors of a worker.
        on_drop: called with each worker whose session ends.
        security: the server's bundle; None without TLS, where nothing is revoked.
        end: ends the run for a reason, in an orderly way.
    """

    def __init__(
        self,
        sessions: Sessions,
        run: RunListener,
        on_drop: Callable[[str], None],
        security: Security | None,
        end: Callable[[str], None],
    ) -> None:
        self.open_calls = OpenCalls(sessions)
        self._sessions = sessions
        self._run = run
        self._on_drop = on_drop
        self._security = security
        self._end = end
        self._senders: dict[str, PeerCertificate] = {}
        """The certificate with which the last counted vector of each worker came."""

    def note_sender(self, worker: str, certificate: PeerCertificate | None) -> None:
        """Remember with which certificate a vector came that was counted."""
        if certificate is not None:
            self._senders[worker] = certificate

    def revoked(self) -> int:
        """The number of certificates on the list."""
        return 0 if self._security is None else len(self._security.revoked)

    def warnings(self) -> tuple[str, ...]:
        """The current problems of the server's bundle, a sentence each."""
        return () if self._security is None else self._security.warnings()

    def look(self) -> None:
        """Act on certificates that are not valid any more. To be called every second."""
        self.open_calls.end()
        dropped = self._sessions.drop_revoked()
        for worker in dropped:
            log.warning(
                "security: %s is removed from the run: %s",
                worker,
                REASON,
                extra=event("worker_revoked", worker=worker),
            )
            self._on_drop(worker)
        sent = [worker for worker, one in self._senders.items() if self._sessions.is_revoked(one)]
        for worker in dict.fromkeys((*dropped, *sent)):
            self._senders.pop(worker, None)
            self._run.withdraw(worker, REASON)
            if worker in self._sessions.present:  # with another certificate
                self._run.present(worker)
        self._check_list()

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Call `look` every second in this context."""
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
            await asyncio.sleep(FILE_CHECK_INTERVAL)
            # A handshake in memory checks a new certificate: that is not for the event loop.
            await asyncio.to_thread(security.look)
            self.look()

    def _check_list(self) -> None:
        """End the run when the list has been missing for too long: no certificate could be revoked."""
        revoked = None if self._security is None else self._security.revoked
        if (
            revoked is not None
            and revoked.failure is not None
            and revoked.missing_for >= MISSING_LIST_GRACE
        ):
            what = f"the list of revoked certificates has been missing for {MISSING_LIST_GRACE:g} s"
            self._end(f"{what}. {revoked.failure.error}")
