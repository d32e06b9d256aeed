"""Administration of a run: calls that look at its workers or change who is one.

An operator shows a certificate of that role, and a worker may leave by itself. The desk decides; here it is
only asked who calls.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from varangian.protos import ps_pb2
from varangian.protos.contract import check_run
from varangian.protos.errors import Refused
from varangian.protos.messages import MANIFEST_LIMIT
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape, quote
from varangian.server.identity.sessions import Sessions
from varangian.server.transport import calls
from varangian.server.transport.calls import Call
from varangian.structured_logs import event

log = logging.getLogger(__name__)

Action: TypeAlias = Literal["admit", "drain", "expel", "leave"]
AS_IT_IS = -1
"""In the place of f: it stays as it is."""


class ChangeRefusedError(Exception):
    """A change of members that would break a promise of the run; the text is a sentence for who asked."""


@dataclass(frozen=True)
class Changed:
    """A change of members that was accepted."""

    sentence: str
    round: int
    """The first round with it."""


class MemberDesk(Protocol):
    """The desk of one run for its members."""

    @property
    def round(self) -> int:
        """The open round."""
        ...

    def listing(self) -> list[dict[str, Any]]:
        """A row for each worker, sorted by name, of what JSON has."""
        ...

    async def change(self, action: Action, name: str, f: int | None, by: str) -> Changed:
        """Change the members from the next round on.

        Args:
            action: what becomes of the worker.
            name: of the worker.
            f: how many workers may be Byzantine after it; None leaves it as it is.
            by: who asks, for the record.

        Raises:
            ChangeRefusedError: the run could not keep its promises with it.
        """
        ...


class EnrolmentDesk(Protocol):
    """The desk of one run for workers that have no certificate yet; each method raises `Refused`."""

    def waiting(self) -> list[dict[str, Any]]:
        """A row for each name that is invited, or waits for its certificate."""
        ...

    def request_of(self, name: str) -> bytes:
        """The certificate signing request of a name that waits; empty if it does not."""
        ...

    def invite(self, name: str, by: str) -> str:
        """A token for a new worker."""
        ...

    def check(self, name: str, certificate: bytes) -> None:
        """Check that a certificate answers the request of a name."""
        ...

    def deliver(self, name: str, certificate: bytes) -> None:
        """Hand it to the worker."""
        ...


class Administration:
    """The calls Members and Leave of one run.

    Args:
        sessions: know callers by what their channel proves.
        desk: of the run; without one nothing can be changed.
        run_id: of the run.
        enrolment: of the run; without one nobody can be invited.
    """

    def __init__(
        self,
        sessions: Sessions,
        desk: MemberDesk | None,
        run_id: str,
        enrolment: EnrolmentDesk | None = None,
    ) -> None:
        self._sessions = sessions
        self._desk = desk
        self._run_id = run_id
        self._enrolment = enrolment

    async def members(self, call: Call, seconds: float) -> bytes:
        """Answer an operator.

        Args:
            call: of the operator.
            seconds: in which the message has to come.

        Raises:
            Refused: it is none, or asks for what there is not, or for what breaks a promise of the run.
        """
        operator = self._sessions.admit_operator(*call.caller)
        request = await calls.read_request(ps_pb2.MembersRequest, call, seconds, MANIFEST_LIMIT)
        desk = self._need_desk()
        reply = ps_pb2.MembersReply(round=desk.round)
        match request.action:
            case "list":
                if request.name:
                    reply.request = self._need_enrolment().request_of(request.name)
            case "invite":
                reply.token = self._need_enrolment().invite(request.name, operator)
            case "admit" | "drain" | "expel" as action:
                f = None if request.f == AS_IT_IS else request.f
                by = f"the operator {operator}"
                if action == "admit" and request.certificate:
                    changed = await self._enrol(desk, request.name, request.certificate, f, by)
                else:
                    changed = await self._change(desk, action, request.name, f, by)
                reply.sentence, reply.round = changed.sentence, changed.round
            case other:
                said = (
                    f"There is no action {quote(other, 20)}; there are list, admit, drain, expel, invite."
                )
                raise Refused(Refusal.MEMBERSHIP, said)
        rows = [*desk.listing(), *(self._enrolment.waiting() if self._enrolment is not None else ())]
        reply.table = "".join(f"{json.dumps(row)}\n" for row in rows)
        return reply.SerializeToString()

    async def _enrol(
        self, desk: MemberDesk, name: str, certificate: bytes, f: int | None, by: str
    ) -> Changed:
        """Admit a worker and hand it its certificate; only the latter if a call before had no answer."""
        enrolment = self._need_enrolment()
        enrolment.check(name, certificate)
        if name in self._sessions.names:
            changed = Changed(f"{name} is a member already, and has its certificate now", desk.round)
        else:
            changed = await self._change(desk, "admit", name, f, by)
        enrolment.deliver(name, certificate)
        return changed

    async def leave(self, call: Call, seconds: float) -> bytes:
        """Let a worker go for good; it may leave by itself alone.

        Raises:
            Refused: it is no worker of the run, or the run could not keep its promises without it.
        """
        self._sessions.need_certificates()
        worker = self._sessions.authenticate(*call.caller)
        request = await calls.read_request(ps_pb2.LeaveRequest, call, seconds, MANIFEST_LIMIT)
        if request.run_id:
            check_run(self._run_id, request.run_id)
        changed = await self._change(self._need_desk(), "leave", worker, None, worker)
        return ps_pb2.LeaveReply(round=changed.round).SerializeToString()

    async def _change(self, desk: MemberDesk, action: Action, name: str, f: int | None, by: str) -> Changed:
        try:
            changed = await desk.change(action, name, f, by)
        except ChangeRefusedError as error:
            raise Refused(Refusal.MEMBERSHIP, str(error)) from None
        log.warning(
            "membership: %s asked to %s %s: %s",
            by,
            action,
            quote(name, 70),
            changed.sentence,
            extra=event("membership_change", operator=by, action=action, name=escape(name, 70)),
        )
        return changed

    def _need_enrolment(self) -> EnrolmentDesk:
        if self._enrolment is None:
            raise Refused(Refusal.ENROLMENT, "This server takes no requests: it has no server.enrol_port.")
        return self._enrolment

    def _need_desk(self) -> MemberDesk:
        if self._desk is None:
            raise Refused(Refusal.MEMBERSHIP, "The workers of this run are those of its start.")
        return self._desk
