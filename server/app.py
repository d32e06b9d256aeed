"""A run on the network: `serve` opens the ports for calls and for payloads, and carries the run out."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from varangian.protos.contract import Contract, Terms
from varangian.protos.data_channel.encrypted_stream import why_unavailable
from varangian.protos.data_channel.listener import DataListener
from varangian.protos.layout import Layout
from varangian.protos.network import descriptors
from varangian.protos.network.descriptors import check_free
from varangian.protos.network.grpc_log import install_log_filter
from varangian.protos.network.grpc_options import inline_lookahead
from varangian.protos.network.listen import bind_sockets
from varangian.protos.network.malloc import keep_large_blocks
from varangian.protos.payloads.encoding import FLOAT32, Dtype
from varangian.protos.shared_settings import SharedSettings
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import DEFAULT_LIMITS, Limits
from varangian.server.observability.traffic import Traffic
from varangian.server.process import frozen_garbage_collector
from varangian.server.protocol.resumption import REJOIN
from varangian.server.transport.administration import MemberDesk
from varangian.server.transport.enrolment import EnrolmentPort
from varangian.server.transport.grpc_server import CallHandlers, bind, options
from varangian.server.transport.refusals import Refusals
from varangian.server.transport.service import Service
from varangian.structured_logs import event
from varangian.telemetry.heartbeat import touch_heartbeat

if TYPE_CHECKING:
    from varangian.server.monitoring.monitoring import Monitoring
    from varangian.server.rounds.coordinator import Coordinator

__all__ = ["serve"]

log = logging.getLogger(__name__)


async def serve(
    coordinator: Coordinator,
    sessions: Sessions,
    layout: Layout,
    *,
    run_id: str,
    host: str,
    port: int,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    dtype: Dtype = FLOAT32,
    exact: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    security: Security | None = None,
    data_port: int | None = 0,
    heartbeat: Path | None = None,
    returns: bool = False,
    for_good: Callable[[], str] = str,
    common: SharedSettings | None = None,
    classes: int | None = None,
    terms: Terms | None = None,
    grace: Callable[[], float] = float,
    end: Callable[[str], None] = log.error,
    refused: Counter[str] | None = None,
    traffic: Traffic | None = None,
    desk: MemberDesk | None = None,
    enrolment: EnrolmentPort | None = None,
    monitoring: Monitoring | None = None,
) -> str:
    """Serve one run until it is finished or `stop` is set; returns why it ended.

    Args:
        coordinator: of the run.
        sessions: the workers and their sessions.
        layout: names and shapes of the model's parameters.
        run_id: differs between two runs, so that workers notice a restart.
        host: to listen at.
        port: for calls; 0 is any free one.
        ready: called once with `host:port`, when workers can connect.
        stop: ends the run after the round in hand.
        dtype: how workers write the numbers that they push.
        exact: how many of them, the last ones, they write as float32 in any case.
        limits: of what a caller may cost.
        security: for TLS.
        data_port: for payloads beside gRPC; None leaves them in the calls.
        heartbeat: a file that is touched every second.
        returns: whether another server goes on with the run after a stop, as in a container that is
            restarted: workers are told to wait for it. Otherwise a stop ends them.
        for_good: why a stop ends the run all the same, which workers hear; empty if it does not.
        common: settings and data that workers should share; compared at Join.
        classes: of the data, for workers whose own data has fewer.
        terms: what workers should know of the starts and checkpoints of the run.
        grace: as of `Coordinator.run`.
        end: called with the reason why the run should not go on; is to set `stop`.
        refused: where to count refused calls and closed connections, by code.
        traffic: where to count pushes and bytes.
        desk: decides about changes of the workers; without one they stay the same.
        enrolment: the port for new workers; None has none.
        monitoring: the port of the page and of metrics; None has none.

    Raises:
        PortInUse: before anything else has happened; or another OSError where no files can be opened.
    """
    keep_large_blocks()
    install_log_filter()
    check_free()
    refusals = Refusals(refused)
    lookahead = inline_lookahead(limits.inline_bytes(layout.numel))
    server = grpc.aio.server(options=options(len(sessions.names), lookahead))
    handlers = CallHandlers()
    server.add_generic_rpc_handlers((handlers,))
    async with AsyncExitStack() as stack:
        stack.callback(handlers.clear)
        # The port with a number first: any free port could be the same.
        address = bind(server, host, port, security.credentials() if security else None)
        try:
            data_listener = await stack.enter_async_context(
                _open_data_listener(host, data_port, limits, security, refusals)
            )
        finally:
            # Before the data listener closes: calls end with their own answers.
            stack.push_async_callback(server.stop, min(limits.grace, 1.0))
        if enrolment is not None:
            await stack.enter_async_context(
                enrolment.listening(host, sessions, limits, refusals, lambda: coordinator.round)
            )
        leaving = partial(_stops_early, coordinator, stop, for_good) if returns else bool
        contract = Contract(
            run_id, layout, dtype, common or SharedSettings(), classes, terms or Terms(), exact
        )
        service = Service(
            coordinator,
            sessions,
            contract,
            limits,
            data_listener,
            leaving,
            security,
            end,
            refusals,
            desk,
            None if enrolment is None else enrolment.enrolment,
            traffic,
        )
        stack.callback(service.dismiss)
        service.add_to(handlers)
        if monitoring is not None:
            await stack.enter_async_context(monitoring.listening())
        await server.start()
        log.info(
            "%s",
            descriptors.describe_limit(len(sessions.names), data_listener is not None),
            extra=event("listening"),
        )
        ready(address)
        if enrolment is not None:
            enrolment.announce()
        if monitoring is not None:
            monitoring.announce()
        call_port = int(address.rpartition(":")[2])
        async with (
            touch_heartbeat(heartbeat),
            service.presence.watching(),
            service.revocation.watching(),
            service.connections.enforce(call_port),
        ):
            with frozen_garbage_collector():
                reason = await coordinator.run(stop, grace, for_good)
        if not leaving():
            farewell = service.farewell(
                REJOIN if coordinator.began_at_the_end else None,
                # Only where somebody restarts workers as well.
                lambda: limits.restart if returns and not stop.is_set() else 0.0,
            )
            await (farewell if monitoring is None else asyncio.gather(farewell, monitoring.farewell(stop)))
        return reason


def _stops_early(coordinator: Coordinator, stop: asyncio.Event, for_good: Callable[[], str]) -> bool:
    """Whether the server stops before its run is over, and another one is to go on."""
    return stop.is_set() and coordinator.round < coordinator.rounds and not for_good()


@asynccontextmanager
async def _open_data_listener(
    host: str,
    port: int | None,
    limits: Limits,
    security: Security | None,
    refusals: Refusals,
) -> AsyncGenerator[DataListener | None, None]:
    """Listen for data connections, unless there is no data port or payloads cannot be encrypted there."""
    lacking = why_unavailable() if security and port is not None else ""
    if lacking:
        log.warning(
            "payloads travel over gRPC, several times slower: %s",
            lacking,
            extra=event("payloads_over_grpc"),
        )
    if port is None or lacking:
        yield None
        return
    data_listener = DataListener(limits.streams, security is not None, refusals.connection)
    try:
        data_listener.listen(bind_sockets(host, port, "server.data_port"))
        yield data_listener
    finally:
        await data_listener.close()
