"""The reply to Status, which is cached: one reply is sent to all callers for a while."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from varangian import __version__
from varangian.protos import ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.messages import PROTOCOL
from varangian.server.identity.revocation import Revocation
from varangian.server.identity.sessions import Sessions
from varangian.server.observability.status import Status
from varangian.server.rounds.coordinator import Coordinator


class StatusReplies:
    """Replies to Status of one run.

    Args:
        coordinator: knows where the run stands.
        sessions: know who is present.
        contract: what the run agreed on.
        refused: how many calls and connections were refused, by code.
        revocation: knows what is wrong with certificates.
        data_port: where payloads travel beside calls; 0 if nowhere.
        fresh: seconds for which a reply is used again, however many calls there are.
        clock: seconds from any start.
        now: seconds since 1970.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        sessions: Sessions,
        contract: Contract,
        refused: Counter[str],
        revocation: Revocation,
        data_port: int,
        fresh: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._coordinator = coordinator
        self._sessions = sessions
        self._contract = contract
        self._refused = refused
        self._revocation = revocation
        self._data_port = data_port
        self._fresh = fresh
        self._clock = clock
        self._now = now
        self._made: tuple[float, bytes] | None = None

    def latest(self) -> bytes:
        """The last one, as long as it is fresh."""
        now = self._clock()
        if self._made is None or now - self._made[0] >= self._fresh:
            self._made = now, self._new().SerializeToString()
        return self._made[1]

    def _new(self) -> ps_pb2.StatusReply:
        status = self._coordinator.status()
        return ps_pb2.StatusReply(
            protocol=PROTOCOL,
            run_id=self._contract.run_id,
            software=__version__,
            round=status.round,
            rounds=status.rounds,
            finished=status.finished,
            sentence=public(status),
            workers=len(self._sessions.names),
            present=len(self._sessions.connected),
            refusals="".join(f"{code} {count}\n" for code, count in sorted(self._refused.items())),
            data_port=self._data_port,
            classes=self._contract.classes or 0,
            revoked=self._revocation.revoked(),
            warnings="".join(f"{sentence}\n" for sentence in self._revocation.warnings()),
            now=max(0, round(1000 * self._now())),
        )


def public(status: Status) -> str:
    """The public status of the run. Which workers proved faulty is for log and record alone."""
    if status.finished:
        return f"the run has ended, at round {status.round} of {status.rounds}"
    answers = len(status.counted) + len(status.faulty)
    return f"round {status.round}: {answers} workers have answered, {len(status.missing)} are waited for"
