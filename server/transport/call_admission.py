"""Admission of calls, before any message is read: who is calling, how often, on how many connections."""

from __future__ import annotations

import asyncio

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.server.identity.sessions import Metadata, Peer, Sessions
from varangian.server.limits.connections import ConnectionLimits, parse_peer
from varangian.server.limits.quotas import LONGEST_DELAY, Calls, CutOffError
from varangian.server.transport.calls import Call


class CallAdmission:
    """The admission of every call.

    Args:
        sessions: know callers by what their channel proves.
        connections: has to know who calls on which.
        calls: how many each caller may make.
    """

    def __init__(self, sessions: Sessions, connections: ConnectionLimits, calls: Calls) -> None:
        self._sessions = sessions
        self._connections = connections
        self.calls = calls

    async def admit(self, call: Call) -> None:
        """Let a call in, at once or a little later. Whether it gets what it asks for is another matter.

        Raises:
            Refused: its caller makes too many.
        """
        end = call.peer
        who, proven = self._who(*call.caller, end)
        self._connections.note_call(end, who, proven)
        try:
            delay, refused = self.calls.take(who)
        except CutOffError:
            self._connections.drop(end)
            delay, refused = LONGEST_DELAY, True
        if delay:
            # Who waits for one answer before the next call is slowed down, also by a refusal.
            await asyncio.sleep(delay)
        if refused:
            raise Refused(Refusal.CALLS, rate=self.calls.rate)

    def _who(self, metadata: Metadata, peer: Peer, end: str) -> tuple[str, bool]:
        """The key under which calls of a caller are counted, and whether the caller has proved it."""
        if (name := self._sessions.proven_name(metadata, peer)) is not None:
            return name, True
        address = parse_peer(end)
        # No name of a worker has a space.
        return f"address {address[0] if address else end}", False
