"""Loop of a worker: pull, compute, push."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from torch import Tensor

from varangian.worker.transport.client import Finished, Pulled, Receipt
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)


class Transport(Protocol):
    """What the loop needs of a `Client`."""

    @property
    def name(self) -> str: ...
    @property
    def run(self) -> str: ...
    async def join(self) -> int: ...
    async def pull(self, after: int) -> Pulled | Finished: ...
    async def push(self, round: int, vector: Tensor) -> Receipt: ...
    async def decline(self, round: int, reason: str) -> None: ...


SIGN_OF_LIFE = 3.0
"""Seconds; several fit into the silence after which a server gives a worker's name to another process."""


def every_round(round: int) -> int:
    return round


async def work(
    client: Transport,
    compute: Callable[[int, Tensor], Awaitable[Tensor | None]],
    sign_of_life: float = SIGN_OF_LIFE,
    turn: Callable[[int], int] = every_round,
    counted: Callable[[int], None] = lambda round: None,
    anew: Callable[[int], None] = lambda round: None,
) -> str:
    """Join, then serve rounds until the run is finished; returns why it ended.

    `compute` gets the round and the parameters (d,), and returns the vector (d,) to send, or None to send
    nothing in this round. With `Declined` it says why it has nothing to send: the server hears of it and
    does not wait, and the loop goes on with the next round. Whatever else it raises ends the loop. A vector
    that the server does not count does not: there is a next round.

    `counted` hears of each round whose vector the server has counted, and `anew` of the first one after the
    server was started again: it knows nothing of what this worker did.

    `turn` says from a round on which is the next that this worker serves. Until then it is away: its pull
    waits at the server, and nothing is sent to it.

    Raises:
        ClientError: when the server cannot be worked with.
    """
    await client.join()
    served, run = -1, client.run
    codes, reasons = set[str](), set[str]()
    while True:
        pulled = await client.pull(turn(served + 1) - 1)
        if isinstance(pulled, Finished):
            return pulled.reason
        if pulled.round <= served or client.run != run:
            log.warning(
                "%s begins anew with round %d: its server was started again", client.name, pulled.round
            )
            run = client.run
            anew(pulled.round)
        job = compute(pulled.round, pulled.parameters)
        served = pulled.round
        try:
            vector = await _computed(job, client, sign_of_life)
        except Declined as declined:
            if declined.reason not in reasons:
                reasons.add(declined.reason)
                log.warning("%s sends nothing in round %d: %s", client.name, served, declined.reason)
            await client.decline(served, declined.reason)
            continue
        if vector is None:
            continue
        receipt = await client.push(served, vector)
        if receipt.counted:
            counted(served)
        elif receipt.code not in codes:
            codes.add(receipt.code)
            log.warning("%s, round %d: %s %s", client.name, served, receipt.code, receipt.sentence)


async def _computed(job: Awaitable[Tensor | None], client: Transport, sign_of_life: float) -> Tensor | None:
    """What the job returns; until then the server hears now and then that this worker lives."""
    task = asyncio.ensure_future(job)
    try:
        while not (await asyncio.wait({task}, timeout=sign_of_life))[0]:
            await client.join()
        return task.result()
    finally:
        task.cancel()
