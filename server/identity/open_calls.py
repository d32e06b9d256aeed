"""Standing calls: those that are open, and the end of the ones whose certificate counts no longer.

A certificate is looked at when a call begins; a call may last for hours. So the certificates of all open
calls are looked at again every second (`Revocation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from varangian.protos.errors import Refused
from varangian.protos.identity.certificate import ShownCertificate
from varangian.server.identity.sessions import Peer, Sessions


@dataclass(eq=False)
class Call:
    """An open call over TLS."""

    task: asyncio.Task[object]
    shown: ShownCertificate
    error: Refused | None = None
    """Why it is ended from here."""


class OpenCalls:
    """The open calls of a server, and the certificate of each."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._calls = set[Call]()

    @contextmanager
    def call(self, peer: Peer) -> Generator[None]:
        """For as long as a call is open, which is the current task.

        Raises:
            Refused: in the place of the cancellation of a call that was ended by `end`.
        """
        task, shown = asyncio.current_task(), self._sessions.shown(peer)
        if task is None or shown is None:
            yield
            return
        call = Call(task, shown)
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
        """End the calls whose certificate was revoked or has expired since they began."""
        for call in [call for call in self._calls if call.error is None]:
            call.error = self._sessions.outdated(call.shown)
            if call.error is not None:
                call.task.cancel()
