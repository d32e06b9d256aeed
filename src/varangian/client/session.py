"""The calls of one worker, one at a time, and signs of life between them.

Everything here runs on the loop of `Background`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

from torch import Tensor

from varangian.protos.contract import Terms
from varangian.protos.layout import Layout
from varangian.protos.network.grpc_log import install_log_filter
from varangian.protos.payloads.encoding import Dtype
from varangian.protos.refusals import Refusal
from varangian.protos.shared_settings import SharedSettings
from varangian.structured_logs import event
from varangian.worker.loop import SIGN_OF_LIFE
from varangian.worker.training.error_feedback import describe_deltas
from varangian.worker.transport.client import Client, ClientError
from varangian.worker.transport.results import Finished, Receipt
from varangian.worker.transport.retry import Backoff
from varangian.worker.transport.tls import Proof

log = logging.getLogger(__name__)

NO_PUSH = "Nothing was pushed before the next pull()."
"""Why a round is declined that a loop has left without an answer."""
RESTARTED = Receipt(False, Refusal.RUN.code, "The server was started again; pull its parameters.")


@dataclass(frozen=True)
class Given:
    """The parameters of a round, and of which start of the server they are."""

    round: int
    parameters: Tensor = field(repr=False)
    """(d,) float32 on the CPU; the next pull writes over them."""
    run: str
    terms: Terms

    @property
    def start(self) -> tuple[str, int]:
        return self.run, self.terms.epoch


class Session:
    """A worker that has joined."""

    def __init__(self, client: Client, deltas: bool = False) -> None:
        self._client = client
        self.deltas = deltas
        """Whether the server wants what is new in a vector since the last that counted."""
        self._calls = asyncio.Lock()
        self._last = time.monotonic()
        self._failure: ClientError | None = None
        self._life = asyncio.create_task(self._show_life())

    @classmethod
    async def open(
        cls,
        server: str,
        name: str,
        proof: Proof,
        layout: Layout,
        *,
        with_buffers: Layout | None = None,
        common: str,
        patience: float | None,
    ) -> Session:
        """Connect and join.

        Raises:
            ClientError: the server cannot be reached or does not take this worker.
        """
        install_log_filter()
        backoff = Backoff(patience=inf if patience is None else patience)
        client = Client(
            server, name, proof, layout, with_buffers=with_buffers, common=common, backoff=backoff
        )
        try:
            deltas = await _joined(client)
            if client.buffers and with_buffers is None:
                raise ClientError(
                    f"The server takes {client.buffers} numbers of buffers with each vector. Found none in "
                    "`model` that can be sent."
                )
        except BaseException:
            await client.close()
            raise
        return cls(client, deltas)

    @property
    def run(self) -> str:
        return self._client.run

    @property
    def terms(self) -> Terms:
        return self._client.terms

    @property
    def dtype(self) -> Dtype:
        """The type in which vectors travel."""
        return self._client.dtype

    async def pull(self, after: int, unanswered: int | None) -> Given | Finished:
        """The parameters of the first open round after that.

        Args:
            after: a round.
            unanswered: a round that the loop has left without a push, which the server need not wait for.

        Raises:
            ClientError: the server cannot be reached or does not take this worker.
        """
        async with self._turn():
            if unanswered is not None:
                await self._client.decline(unanswered, NO_PUSH)
            pulled = await self._client.pull(after)
            if isinstance(pulled, Finished):
                self._life.cancel()  # the server may be gone from now on
                return pulled
            return Given(pulled.round, pulled.parameters, self._client.run, self._client.terms)

    async def push(self, given: Given, vector: Tensor) -> Receipt:
        """Send a vector for the round of these parameters; it must not change meanwhile.

        Raises:
            ClientError: the server cannot be reached or does not take this worker.
        """
        async with self._turn():
            if (self._client.run, self._client.terms.epoch) != given.start:
                return RESTARTED
            return await self._client.push(given.round, vector)

    async def decline(self, given: Given, reason: str) -> None:
        """Say that nothing comes in the round of these parameters.

        Raises:
            ClientError: the server cannot be reached or does not take this worker.
        """
        async with self._turn():
            if (self._client.run, self._client.terms.epoch) == given.start:
                await self._client.decline(given.round, reason)

    async def close(self) -> None:
        self._life.cancel()
        await asyncio.wait({self._life})
        await self._client.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        async with self._calls:
            if self._failure is not None:
                raise self._failure
            try:
                yield
            finally:
                self._last = time.monotonic()

    async def _show_life(self) -> None:
        """Call the server now and then while nothing else does, so that the name is not given away."""
        while self._failure is None:
            await asyncio.sleep(SIGN_OF_LIFE)
            if self._calls.locked() or time.monotonic() - self._last < SIGN_OF_LIFE:
                continue
            async with self._calls:
                try:
                    await self._client.join()
                except ClientError as error:
                    self._failure = error.with_traceback(None)
                    log.debug("%s", error, extra=event("worker_failed", worker=self._client.name))
                self._last = time.monotonic()


async def _joined(client: Client) -> bool:
    """Join; whether the server wants deltas of vectors.

    A server that wants them refuses who says that it pushes vectors. Then a join that compares nothing
    tells the type in which they travel, and another one whether that is what differs.

    Raises:
        ClientError: the server cannot be reached or does not take this worker.
    """
    try:
        await client.join()
        return False
    except ClientError as error:
        if error.refusal is not Refusal.COMMON:
            raise
        refused = error.with_traceback(None)
    client.common = ""
    await client.join()
    client.common = SharedSettings({"participation": describe_deltas(client.dtype)}).text
    try:
        await client.join()
    except ClientError as error:
        raise refused if error.refusal is Refusal.COMMON else error from None
    return True
