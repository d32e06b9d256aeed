"""The round protocol over gRPC: a call becomes an event of the coordinator, its answer a reply or a status.

Messages reach this file as bytes and are parsed here, so that bytes which are no message end as one more
refusal with a code, like everything else that a worker can do wrong.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Never, TypeVar

import grpc

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.contract import Contract, check_protocol, check_run
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.listener import DataListener
from varangian.protos.data_channel.tickets import DataTicket
from varangian.protos.errors import Refused
from varangian.protos.identity.certificate import PeerCertificate
from varangian.protos.messages import JOIN_LIMIT, MESSAGE_LIMIT, PROTOCOL
from varangian.protos.payloads.encoding import WIRE, check_digest
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape
from varangian.server.identity.presence import PRESENCE_CHECK_INTERVAL, Presence
from varangian.server.identity.revocation import Revocation
from varangian.server.identity.sessions import Sessions
from varangian.server.limits.concurrency import NewestCalls, SmallMessages, StreamQuota
from varangian.server.limits.connections import ConnectionLimits
from varangian.server.limits.limits import Limits
from varangian.server.limits.quotas import Calls, RoundQuotas
from varangian.server.limits.upload_scheduler import UploadScheduler
from varangian.server.observability.traffic import OpenCall, Traffic
from varangian.server.protocol.events import Members
from varangian.server.rows.slot import Overtaken, Slot
from varangian.server.transport import calls, uploads
from varangian.server.transport.administration import Administration, EnrolmentDesk, MemberDesk
from varangian.server.transport.call_admission import CallAdmission
from varangian.server.transport.calls import Call, Context
from varangian.server.transport.downloads import AGAIN, Downloads
from varangian.server.transport.grpc_server import CallHandlers, Handler
from varangian.server.transport.refusals import Refusals
from varangian.server.transport.status_reply import StatusReplies
from varangian.server.weak_methods import weakly
from varangian.structured_logs import event

if TYPE_CHECKING:
    from varangian.server.identity.tls import Security
    from varangian.server.rounds.coordinator import Coordinator
    from varangian.server.rounds.pulls import AnsweredPull

__all__ = ["Limits", "Service"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

SOFTWARE = 80
"""Characters of what a worker says of its software that are logged."""
SERVICE = ps_pb2.DESCRIPTOR.services_by_name["ParameterServer"].full_name


def answer_refusals(
    handler: Callable[[Service, Call], Awaitable[R]],
) -> Callable[[Service, object, Context], Awaitable[R]]:
    """Turn every refusal in a handler into a status with a code and a sentence."""

    @functools.wraps(handler)
    async def answer(self: Service, _: object, context: Context) -> R:
        try:
            return await attempt(self, Call(context))
        except (grpc.aio.AbortError, asyncio.CancelledError) as ended:
            # It is kept by the call that it ends, and keeps the frames that it has come through, which know
            # the call and the run: a circle. Now it has come through this one, which knows neither.
            del self, context
            raise ended.with_traceback(None)  # noqa: B904

    async def attempt(self: Service, call: Call) -> R:
        try:
            with self.revocation.open_calls.call(call.caller[1]):
                await self._door.admit(call)
                return await handler(self, call)
        except Refused as error:
            refused = error.with_traceback(None)  # whose frames would hold it
        return await self.refuse(call, refused)

    return answer


class Service:
    """The calls of one run."""

    def __init__(
        self,
        coordinator: Coordinator,
        sessions: Sessions,
        contract: Contract,
        limits: Limits,
        data_listener: DataListener | None = None,
        leaves: Callable[[], bool] = bool,
        security: Security | None = None,
        end: Callable[[str], None] = log.error,
        refusals: Refusals | None = None,
        desk: MemberDesk | None = None,
        enrolment: EnrolmentDesk | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._traffic = traffic or Traffic()
        self._administration = Administration(sessions, desk, contract.run_id, enrolment)
        self.refusals = refusals or Refusals()
        self._sessions = sessions
        self._contract = contract
        self._limits = limits
        self._inline = limits.inline_bytes(contract.layout.numel) > 0
        """Whether payloads may travel in one message with their manifest."""
        self._data_listener = data_listener
        self._leaves = leaves
        """Whether this server stops, and another one takes its place: then nothing is finished."""
        self._upload_scheduler = UploadScheduler(limits.receiving, limits.turn_seconds, limits.turn_bytes)
        self._quota = StreamQuota(limits.streams)
        self._round_quotas = RoundQuotas(limits.uploads, limits.downloads, limits.joins)
        self._newest, self._joining = NewestCalls(), NewestCalls()
        self.connections = ConnectionLimits(len(sessions.names), self.refusals.count)
        self._door = CallAdmission(sessions, self.connections, Calls(limits.calls, limits.calls_at_once))
        self._requests = SmallMessages(len(sessions.names))
        self._downloads = Downloads(contract, coordinator.pulls, limits.idle, sessions.touch, self._traffic)
        self._told = set[str]()
        self._heard = asyncio.Event()
        self._attending = StreamQuota(limits.streams)
        self._dismissed = asyncio.Event()
        self.presence = Presence(sessions, coordinator)
        self.revocation = Revocation(sessions, coordinator, self.presence.drop, security, end)
        self._status = StatusReplies(
            coordinator,
            sessions,
            contract,
            self.refusals.counts,
            self.revocation,
            self._data_port,
            limits.status,
        )
        self._logged = set[tuple[str, str]]()
        coordinator.on_members = weakly(self._change_members)

    def add_to(self, handlers: CallHandlers) -> None:
        """Serve the calls, on bytes: parsing is ours."""
        found: dict[str, Handler] = {
            # All of them as streams: gRPC would wait without end for the one message of a unary call.
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Pull": grpc.stream_stream_rpc_method_handler(self.pull),
            "Push": grpc.stream_unary_rpc_method_handler(self.push),
            "Attend": grpc.stream_stream_rpc_method_handler(self.attend),
            "Decline": grpc.stream_unary_rpc_method_handler(self.decline),
            "Status": grpc.stream_unary_rpc_method_handler(self.status),
            "Members": grpc.stream_unary_rpc_method_handler(self.members),
            "Leave": grpc.stream_unary_rpc_method_handler(self.leave),
        }
        if self._inline:
            found["PullInline"] = grpc.stream_unary_rpc_method_handler(self.pull_inline)
        handlers.add(SERVICE, found)

    @answer_refusals
    async def join(self, call: Call) -> bytes:
        caller = call.caller
        worker = self._sessions.authenticate(*caller)
        self._round_quotas.join(worker)
        # The last process of this name whose message never came, or comes slowly, keeps nobody waiting.
        async with self._joining.call(worker), self._requests.reading(worker):
            request = await calls.read_request(ps_pb2.JoinRequest, call, self._limits.joining, JOIN_LIMIT)
        check_protocol(request.protocol)
        self._check_common(worker, request.common)
        self._check_layout(request.layout)
        before = self._sessions.session(worker)
        self._sessions.claim(*caller)
        self.presence.look()
        if self._sessions.session(worker) != before:  # not a sign of life of the same process
            log.info(
                "%s joined with %s",
                worker,
                escape(request.software, SOFTWARE),
                extra=event("worker_joined", worker=worker, software=escape(request.software, SOFTWARE)),
            )
        terms = self._contract.terms
        return ps_pb2.JoinReply(
            protocol=PROTOCOL,
            run_id=self._contract.run_id,
            round=self._coordinator.round,
            chunk_bytes=uploads.message_bytes(self._contract.size, len(self._sessions.names)),
            message_limit=MESSAGE_LIMIT,
            dtype=WIRE[self._contract.dtype],
            data_port=self._data_port,
            inline=self._inline,
            epoch=terms.epoch,
            resumed_at=terms.resumed_at,
            checkpoint_every=terms.every,
            checkpoint_keep=terms.keep,
            parent=terms.parent,
            momentum=terms.momentum,
            deadline=terms.deadline,
            buffers=self._contract.exact,
            fragments=terms.fragments,
            finished=self._end_of_run(worker),
        ).SerializeToString()

    def _end_of_run(self, worker: str) -> str:
        """What a worker is told of the end of the run; empty while there is more to come."""
        snapshot = self._coordinator.model
        if not snapshot.finished or self._leaves():
            return ""
        self._told.add(worker)
        self._heard.set()
        return snapshot.reason

    @answer_refusals
    async def pull(self, call: Call) -> None:
        await self._pull(call, self._send_model)

    @answer_refusals
    async def pull_inline(self, call: Call) -> bytes:
        return await self._pull(call, self._inline_model)

    async def _pull(self, call: Call, answer: Callable[..., Awaitable[R]]) -> R:
        worker = self._identify(call)
        with self._quota.stream(worker), self._sessions.calling(worker):
            async with self._requests.reading(worker):
                request = await calls.read_request(ps_pb2.PullRequest, call, self._limits.idle)
            check_run(self._contract.run_id, request.run_id)
            if request.have:
                check_digest(request.have)
            pulls, patience = self._coordinator.pulls, self._limits.patience
            async with pulls.answered(worker, request.after, patience) as pull:
                # While this waited, it may have been expelled: the answer must not be that it has left.
                if (expelled := self._sessions.why_expelled(worker)) is not None:
                    raise expelled
                pull.have = request.have
                return await answer(worker, pull, request.chunk_bytes, call)

    async def _send_model(self, worker: str, pull: AnsweredPull, chunk_bytes: int, call: Call) -> None:
        """The answer to a pull as a stream."""
        with self._without_model(worker, pull) as message:
            if message is not None:
                await self._downloads.send_message(message, call)
                return
        sent = self._downloads.for_pull(pull)
        transfer = AssociatedData(PROTOCOL, "pull", self._contract.run_id, sent.round, worker, sent.size)
        with self._traffic.pull(worker, sent.round), self._ticket(transfer, call) as ticket:
            if ticket is None:
                await self._downloads.tell_trace(sent.round, call)
                await self._downloads.send_model(worker, pull, sent, chunk_bytes, call)
            else:
                await self._downloads.send_beside(worker, pull, sent, ticket, call)
        if pull.delivered:
            self._door.calls.give(worker)

    async def _inline_model(self, worker: str, pull: AnsweredPull, _: int, call: Call) -> bytes:
        """The answer to a pull in one message."""
        with self._without_model(worker, pull) as message:
            if message is not None:
                return message
        self._door.calls.give(worker)
        assert pull.snapshot is not None
        with self._traffic.pull(worker, pull.snapshot.round):
            await self._downloads.tell_trace(pull.snapshot.round, call)
            return self._downloads.inline(pull)

    @contextmanager
    def _without_model(self, worker: str, pull: AnsweredPull) -> Generator[bytes | None]:
        """The message in place of a model, for as long as it is being sent; None if it is to be the model.

        Raises:
            Refused: the server stops, or the worker has pulled this model too often.
        """
        snapshot = pull.snapshot
        if snapshot is None:
            yield AGAIN
        elif snapshot.finished and self._leaves():
            raise Refused(Refusal.STOPPING)
        elif snapshot.finished:
            try:
                yield ps_pb2.PullReply(finished=ps_pb2.Finished(reason=snapshot.reason)).SerializeToString()
            finally:
                # Who has heard hangs up, often before the write is known here to have succeeded.
                self._told.add(worker)
                self._heard.set()
        else:
            self._round_quotas.download(worker, snapshot.round)
            yield None

    @answer_refusals
    async def push(self, call: Call) -> bytes:
        with self._traffic.push() as push:
            return await self._push(call, push)

    async def _push(self, call: Call, push: OpenCall) -> bytes:
        worker = self._identify(call)
        with self._quota.stream(worker), self._sessions.calling(worker):
            async with self._requests.reading(worker):
                first = await uploads.read_manifest(
                    call, self._limits.idle, self._contract.size if self._inline else 0
                )
            manifest = first.manifest
            # It proves nothing, whatever it says: no digest covers it, so the line may have changed it.
            contract = self._contract.of_push(manifest.round)
            contract.check(manifest, digest_follows=True)
            push.worker, push.round = worker, manifest.round
            async with self._newest.call(worker):
                slot = await self._coordinator.offer(
                    worker, manifest.round, manifest.content_digest, contract.encoding
                )
                if slot is Refusal.DUPLICATE:
                    push.outcome = "duplicate"
                    return self._counted(worker, manifest.round, duplicate=True)
                if isinstance(slot, Refusal):
                    raise self._refused(slot)
                await self._payload(first, slot, call)
            shown = await self._still_valid(slot, call)
            outcome = await self._coordinator.complete(slot)
            if outcome is None:
                self.revocation.note_sender(worker, shown)
        if isinstance(outcome, Refusal):
            raise self._refused(outcome)
        if outcome is not None:
            raise Refused(Refusal.UNSOUND, f"It was refused: {outcome}.")
        self._door.calls.give(worker)
        return self._counted(worker, manifest.round)

    def _counted(self, worker: str, round: int, duplicate: bool = False) -> bytes:
        """The answer to a push that counts, with the weight of the last row of this worker."""
        last = self._coordinator.weights.get(worker)
        weight, weight_round = (None, 0) if last is None else (last.weight, last.round)
        return ps_pb2.PushReply(
            round=round, duplicate=duplicate, weight=weight, weight_round=weight_round
        ).SerializeToString()

    @answer_refusals
    async def attend(self, call: Call) -> None:
        worker = self._identify(call)
        with self._attending.stream(worker), self._sessions.calling(worker, persistent=True):
            async with self._requests.reading(worker):
                request = await calls.read_request(ps_pb2.AttendRequest, call, self._limits.idle)
            check_run(self._contract.run_id, request.run_id)
            with calls.cancel_if_gone():
                await call.send_initial_metadata(())
            with suppress(TimeoutError):
                # One that stays for ever would keep its connection for ever.
                await asyncio.wait_for(self._dismissed.wait(), self._limits.age)
                return
        raise Refused(Refusal.AGE)

    @answer_refusals
    async def decline(self, call: Call) -> bytes:
        worker = self._identify(call)
        with self._quota.stream(worker), self._sessions.calling(worker):
            async with self._requests.reading(worker):
                request = await calls.read_request(ps_pb2.DeclineRequest, call, self._limits.idle)
            check_run(self._contract.run_id, request.run_id)
            refusal = await self._coordinator.decline(worker, request.round, request.reason)
        if refusal is not None:
            raise self._refused(refusal)
        return ps_pb2.DeclineReply().SerializeToString()

    @answer_refusals
    async def status(self, call: Call) -> bytes:
        self._sessions.admit(call.caller[1])
        return self._status.latest()  # whatever the message says, and whether it comes or not

    @answer_refusals
    async def members(self, call: Call) -> bytes:
        reply = await self._administration.members(call, self._limits.idle)
        self._end_expelled()
        return reply

    @answer_refusals
    async def leave(self, call: Call) -> bytes:
        return await self._administration.leave(call, self._limits.idle)

    def _end_expelled(self) -> None:
        """End the calls of workers that were expelled, and know them as gone."""
        self.revocation.open_calls.end()
        self.presence.look()

    def _change_members(self, members: Members, gone: Mapping[str, str]) -> None:
        """The workers of the run are others from now on."""
        for worker in members.gone:
            self._sessions.depart(worker, gone[worker])
            self.presence.forget(worker)
        for worker in members.admitted:
            self.presence.admit(worker)
        self._requests.grow(len(members.workers))

    async def refuse(self, call: Call, refused: Refused) -> Never:
        """End a call with a refusal."""
        gone = self._sessions.worker_name(call.caller[1])
        if refused.refusal is Refusal.UNKNOWN_WORKER and gone and self._sessions.has_departed(gone):
            refused = Refused(Refusal.FINISHED, "This worker has left it.")  # its pull says how
        worker = self._sessions.claimed_name(*call.caller)
        await self.refusals.answer(call, worker, refused, self._coordinator.round)

    def _refused(self, refusal: Refusal) -> Refused:
        """A refusal that depends on the round."""
        if refusal is Refusal.FINISHED and self._leaves():
            return Refused(Refusal.STOPPING)  # as a pull hears
        return Refused(refusal, f"The server is in round {self._coordinator.round}.")

    async def farewell(self, rejoin: float | None = None, restart: Callable[[], float] = float) -> None:
        """Wait until everyone who is there has heard that the run is finished, but not for ever.

        Args:
            rejoin: seconds for all workers to come back and hear it, after the restart of a server.
            restart: seconds since a worker that is gone was last there for which it is waited for.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._limits.grace, restart()) if rejoin is None else rejoin):
                while self._unaware(rejoin is not None, restart()):
                    self._heard.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._heard.wait(), PRESENCE_CHECK_INTERVAL)

    def _unaware(self, everyone: bool, restart: float) -> set[str]:
        """The workers that are to hear of the end and have not."""
        names = set(self._sessions.names)
        if not everyone:
            lately = {name for name, silence in self._sessions.silences().items() if silence < restart}
            names &= self._sessions.connected | lately
        return names - self._told

    def dismiss(self) -> None:
        """End the calls that were to stay open."""
        self._dismissed.set()

    def _identify(self, call: Call) -> str:
        worker = self._sessions.identify(*call.caller)
        self.presence.note_call(worker)
        return worker

    @property
    def _data_port(self) -> int:
        return self._data_listener.port if self._data_listener else 0

    def _ticket(self, transfer: AssociatedData, call: Call) -> AbstractContextManager[DataTicket | None]:
        """The ticket for a payload on the data channel, if the caller can use it."""
        asked = any(key == metadata_keys.DATA_CHANNEL for key, _ in call.caller[0])
        return self._data_listener.ticket(transfer) if self._data_listener and asked else nullcontext()

    def _check_common(self, worker: str, text: str) -> None:
        for name, sentence in self._contract.common.differences(text):
            if name not in self._contract.common.loose:
                raise Refused(Refusal.COMMON, sentence)
            if (worker, name) not in self._logged:
                self._logged.add((worker, name))
                what = "the number of workers that %s knows" if name == "workers" else "the data of %s"
                log.warning(
                    f"{what} differs from that of the server: %s",
                    worker,
                    sentence,
                    extra=event("settings_differ", worker=worker, setting=name),
                )

    def _check_layout(self, text: str) -> None:
        layout = self._contract.layout
        if layout.buffers and text == layout.trained.text:
            return  # the reply says that there are buffers, too
        if difference := layout.difference(text):
            raise Refused(Refusal.LAYOUT, difference)

    async def _still_valid(self, slot: Slot, call: Call) -> PeerCertificate | None:
        """The certificate of a push whose payload is there; it may have been revoked on the way.

        Raises:
            Refused: it was, or has expired. The slot is released.
        """
        shown = self._sessions.certificate(call.caller[1])
        if error := self._sessions.why_invalid(shown):
            await self._coordinator.release(slot)
            raise error
        return shown

    async def _payload(self, first: ps_pb2.PushRequest, slot: Slot, call: Call) -> None:
        """Fill the slot from the first message or from what follows it, or give it back."""

        def alive() -> None:
            self._sessions.touch(slot.worker)

        try:
            self._round_quotas.upload(slot.worker, slot.round)
            if first.payload:
                self._traffic.received["grpc"] += len(first.payload)
                await slot.put_whole(first.payload, slot.digest)
                return
            transfer = AssociatedData.of("push", first.manifest, slot.worker, slot.size)
            with self._ticket(transfer, call) as ticket:
                upload = uploads.Upload(
                    slot, call, self._upload_scheduler, self._limits, alive, self._traffic, ticket
                )
                slot.digest = await upload.receive(slot.digest)
        except Overtaken as error:
            await self._coordinator.release(slot)
            raise self._refused(error.refusal) from None
        except BaseException:
            await self._coordinator.release(slot)
            raise
