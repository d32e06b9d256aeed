"""The loop of a worker: pull, compute, push."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from torch import Tensor

from varangian.protos.contract import Terms
from varangian.structured_logs import enter, event
from varangian.worker.spans import Spans
from varangian.worker.transport.client import Finished, Pulled, Receipt
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)


class Transport(Protocol):
    """The interface of a `Client` for the loop."""

    @property
    def name(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def terms(self) -> Terms: ...
    async def join(self) -> int: ...
    async def pull(self, after: int) -> Pulled | Finished: ...
    async def push(self, round: int, vector: Tensor) -> Receipt: ...
    async def decline(self, round: int, reason: str) -> None: ...


NO_SPANS = Spans()
SIGN_OF_LIFE = 3.0
"""Seconds between calls while a worker computes: several fit into the time after which a name is free."""


def every_round(round: int) -> int:
    return round


async def forgets_nothing(round: int) -> tuple[int, Tensor] | None:
    return None


async def work(
    client: Transport,
    compute: Callable[[int, Tensor], Awaitable[Tensor | None]],
    sign_of_life: float = SIGN_OF_LIFE,
    next_round: Callable[[int], int] = every_round,
    on_counted: Callable[[int], None] = lambda round: None,
    rewind: Callable[[int], Awaitable[tuple[int, Tensor] | None]] = forgets_nothing,
    spans: Spans = NO_SPANS,
) -> str:
    """Join, then serve rounds until the run is finished; returns why it ended.

    A vector that the server does not count does not end the loop: there is a next round.

    Args:
        client: to the server.
        compute: from a round and the parameters (d,) to the vector (d,), or None to send nothing. Raises
            `Declined` for a reason that the server is told, so that it does not wait; any other error ends
            the loop.
        sign_of_life: seconds between calls to the server during a computation.
        next_round: from a round, the first one from there on that this worker takes part in. Until then
            its pull waits at the server.
        on_counted: called with each round whose vector the server has counted.
        rewind: called with the first round that this worker is given, and with that after each start of the
            server: what the worker remembers is to be that of this round. Returns a round before it, with
            its vector, of which the server is to say whether it was counted.
        spans: of computations and pushes.

    Raises:
        ClientError: when the server cannot be worked with.
    """
    await client.join()
    here = enter(client.run, client.name)
    served, start = -1, None
    codes, reasons = set[str](), set[str]()
    while True:
        pulled = await client.pull(next_round(served + 1) - 1)
        if isinstance(pulled, Finished):
            return pulled.reason
        round = here.round = pulled.round
        here.run = client.run
        if round <= served or _start(client) != start:
            if start is not None:
                log.warning(
                    "%s starts again with round %d: its server was restarted",
                    client.name,
                    round,
                    extra=event("starts_again"),
                )
            start = _start(client)
            unconfirmed = await rewind(round)
            if unconfirmed is not None and unconfirmed[0] < round:
                # What the server does not have of it comes with the next one.
                receipt = await client.push(*unconfirmed)
                if receipt.counted:
                    on_counted(unconfirmed[0])
        served = round
        try:
            with spans.span("compute", pulled.trace_parent, client.name, round):
                vector = await _compute_alive(compute(round, pulled.parameters), client, sign_of_life)
        except Declined as declined:
            if declined.reason not in reasons:
                reasons.add(declined.reason)
                log.warning(
                    "%s sends nothing in round %d: %s",
                    client.name,
                    round,
                    declined.reason,
                    extra=event("declines"),
                )
            await client.decline(round, declined.reason)
            continue
        if vector is None or _start(client) != start:
            continue
        with spans.span("push", pulled.trace_parent, client.name, round) as span:
            receipt = await client.push(round, vector)
            span.outcome, span.error = "counted" if receipt.counted else "refused", receipt.code
        if receipt.counted:
            on_counted(round)
        elif receipt.code not in codes:
            codes.add(receipt.code)
            log.warning(
                "%s, round %d: %s %s",
                client.name,
                round,
                receipt.code,
                receipt.sentence,
                extra=event("not_counted", code=receipt.code),
            )


def _start(client: Transport) -> tuple[str, int]:
    """The start of a server that the client has joined last."""
    return client.run, client.terms.epoch


async def _compute_alive(
    job: Awaitable[Tensor | None], client: Transport, sign_of_life: float
) -> Tensor | None:
    """Wait for the computation, and tell the server now and then that this worker is alive."""
    task = asyncio.ensure_future(job)
    try:
        while not (await asyncio.wait({task}, timeout=sign_of_life))[0]:
            await client.join()
        return task.result()
    finally:
        task.cancel()
        del task  # an error that it holds, and that has come through here, would hold it
