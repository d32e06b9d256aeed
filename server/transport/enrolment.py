"""Enrolment over gRPC: a port of its own, on which the server shows a certificate and callers need none.

It is another gRPC server than that of the run: whoever can reach it reaches no call of a run, takes no
connection from a worker, and can send a few kilobytes at most.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Never

import grpc
import grpc.aio

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.text import quote
from varangian.server.identity.enrolment import Enrolment
from varangian.server.identity.sessions import LOGGED, Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.connections import ConnectionLimits, parse_peer
from varangian.server.limits.limits import Limits
from varangian.server.limits.quotas import Calls, Guesses
from varangian.server.transport import calls
from varangian.server.transport.call_admission import CallAdmission
from varangian.server.transport.calls import Call, Context
from varangian.server.transport.grpc_server import CallHandlers, bind, options
from varangian.server.transport.refusals import Refusals
from varangian.structured_logs import event

log = logging.getLogger(__name__)

SERVICE = ps_pb2.DESCRIPTOR.services_by_name["ParameterServer"].full_name
SETTING = "server.enrol_port"
CALLERS = 8
"""Workers that enrol at the same time, for the number of connections."""
MESSAGE = 8 << 10
"""Bytes of a message; one of `varangian join` has less than a thousand."""


class EnrolmentPort:
    """The port on which workers ask for their certificates.

    Args:
        enrolment: answers them.
        security: the server's bundle.
        port: 0 for any free one.
        ready: called with `host:port` by `announce`.
    """

    def __init__(
        self, enrolment: Enrolment, security: Security, port: int, ready: Callable[[str], None]
    ) -> None:
        self.enrolment = enrolment
        self._security = security
        self._port = port
        self._ready = ready
        self._address = ""

    @asynccontextmanager
    async def listening(
        self,
        host: str,
        sessions: Sessions,
        limits: Limits,
        refusals: Refusals,
        round: Callable[[], int],
    ) -> AsyncGenerator[None]:
        """Take requests in this context.

        Raises:
            ListenError: that cannot be done there.
        """
        small = ("grpc.max_receive_message_length", MESSAGE), ("grpc.max_send_message_length", 1 << 20)
        others = [option for option in options(CALLERS) if option[0] not in dict(small)]
        server = grpc.aio.server(options=[*small, *others])
        service = EnrolmentService(self.enrolment, sessions, limits, refusals, round)
        handlers = CallHandlers()
        handlers.add(SERVICE, {"Enrol": grpc.stream_unary_rpc_method_handler(service.enrol)})
        server.add_generic_rpc_handlers((handlers,))
        address = bind(server, host, self._port, self._security.one_way_credentials(), SETTING)
        await server.start()
        try:
            async with service.connections.enforce(int(address.rpartition(":")[2])):
                self._address = address
                yield
        finally:
            await server.stop(min(limits.grace, 1.0))
            handlers.clear()

    def announce(self) -> None:
        """Say where it listens."""
        self._ready(self._address)


class EnrolmentService:
    """The one call of that port."""

    def __init__(
        self,
        enrolment: Enrolment,
        sessions: Sessions,
        limits: Limits,
        refusals: Refusals,
        round: Callable[[], int],
    ) -> None:
        self._enrolment = enrolment
        self._limits = limits
        self._refusals = refusals
        self._round = round
        self._guesses = Guesses()
        self.connections = ConnectionLimits(CALLERS, refusals.count)
        self._door = CallAdmission(sessions, self.connections, Calls(limits.calls, limits.calls_at_once))

    async def enrol(self, _: object, context: Context) -> bytes:
        call = Call(context)
        try:
            await self._door.admit(call)
            return await self._answer(call)
        except Refused as error:
            refused = error
        return await self._refuse(call, refused)

    async def _answer(self, call: Call) -> bytes:
        request = await calls.read_request(ps_pb2.EnrolRequest, call, self._limits.idle, MESSAGE)
        authority = self._enrolment.authority
        if not request.token:
            # By this the caller recognises the server before it shows a token; everybody may have it.
            return ps_pb2.EnrolReply(authority=authority, waiting="a token").SerializeToString()
        address = _address(call)
        self._guesses.check(address)
        try:
            certificate = self._enrolment.ask(request.token, request.name, request.request)
        except Refused as error:
            self._guesses.note(address)
            log.warning(
                "security: %s from %s: %s",
                error.refusal.code,
                address,
                quote(str(error), LOGGED),
                extra=event("suspicious_call", caller=address, code=error.refusal.code),
            )
            raise
        if certificate:
            return ps_pb2.EnrolReply(certificate=certificate, authority=authority).SerializeToString()
        waiting = f"an operator: varangian workers admit {request.name} --authority DIR"
        return ps_pb2.EnrolReply(authority=authority, waiting=waiting).SerializeToString()

    async def _refuse(self, call: Call, refused: Refused) -> Never:
        await self._refusals.answer(call, "a stranger", refused, self._round())


def _address(call: Call) -> str:
    found = parse_peer(call.peer)
    return call.peer if found is None else found[0]
