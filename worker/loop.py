"""What a worker does all day: pull, compute, push."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from torch import Tensor

from varangian.worker.client import Finished, Pulled, Receipt

log = logging.getLogger(__name__)


class Transport(Protocol):
    """What the loop needs of a `Client`."""

    @property
    def name(self) -> str: ...
    async def join(self) -> int: ...
    async def pull(self, after: int) -> Pulled | Finished: ...
    async def push(self, round: int, vector: Tensor) -> Receipt: ...


async def work(client: Transport, compute: Callable[[int, Tensor], Awaitable[Tensor]]) -> str:
    """Join, then serve rounds until the run is finished; returns why it ended.

    `compute` gets the round and the parameters (d,), and returns the vector (d,) to send. Whatever it
    raises ends the loop. A vector that the server does not count does not: there is a next round.

    Raises:
        ClientError: when the server cannot be worked with.
    """
    await client.join()
    served = -1
    codes = set[str]()
    while True:
        pulled = await client.pull(served)
        if isinstance(pulled, Finished):
            return pulled.reason
        receipt = await client.push(pulled.round, await compute(pulled.round, pulled.parameters))
        served = pulled.round
        if not receipt.counted and receipt.code not in codes:
            codes.add(receipt.code)
            log.warning("%s, round %d: %s %s", client.name, served, receipt.code, receipt.sentence)
