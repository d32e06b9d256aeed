"""Worker for programs that run on asyncio, as `varangian.connect_async` opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from varangian.client.exchange import END
from varangian.client.outcome import Outcome
from varangian.client.worker import WorkerFacts

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler


class AsyncWorker(WorkerFacts):
    """As `Worker`, with coroutines. Its calls run on another loop: this one may be busy with a model."""

    async def pull(self, *, zero_grad: bool = True) -> bool:
        """As `Worker.pull`."""
        return self._exchange.end_pull(await asyncio.wrap_future(self._exchange.begin_pull()), zero_grad)

    async def push(
        self, vector: Tensor | None = None, *, scaler: GradScaler | None = None, divide: float = 1
    ) -> Outcome:
        """As `Worker.push`."""
        return await asyncio.wrap_future(self._exchange.begin_push(vector, scaler, divide, copy=False))

    def push_async(
        self, vector: Tensor | None = None, *, scaler: GradScaler | None = None, divide: float = 1
    ) -> asyncio.Future[Outcome]:
        """As `Worker.push_async`; the gradients are copied before this returns."""
        return asyncio.wrap_future(self._exchange.begin_push(vector, scaler, divide, copy=True))

    async def decline(self, reason: str) -> None:
        """As `Worker.decline`."""
        await asyncio.wrap_future(self._exchange.begin_decline(reason))

    async def close(self) -> None:
        """As `Worker.close`."""
        closing = self._exchange.begin_close()
        if closing is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(closing), END)

    async def __aenter__(self) -> AsyncWorker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for pushes that are on their way unless there is an error, and close."""
        try:
            if error is None:
                pushing = [asyncio.wrap_future(one) for one in self._exchange.drain()]
                await asyncio.gather(*pushing, return_exceptions=True)
        finally:
            await self.close()


class Connecting:
    """What `connect_async` returns: `await` it, or use it in `async with`."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncWorker]]) -> None:
        self._connect = connect
        self._worker: AsyncWorker | None = None

    def __await__(self) -> Generator[Any, Any, AsyncWorker]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncWorker:
        self._worker = await self._connect()
        return self._worker

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            await self._worker.__aexit__(kind, error, trace)
