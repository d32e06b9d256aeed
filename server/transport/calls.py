"""Reading and writing streams without letting the other end decide how long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Never, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from varangian.protos.data_channel.connection import DataConnectionError
from varangian.protos.errors import Refused
from varangian.protos.messages import MANIFEST_LIMIT, decode_message
from varangian.protos.network.idle_timeout import IdleTimeout
from varangian.protos.refusals import Refusal
from varangian.server.identity.sessions import Metadata, Peer

M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

BEGINNING = 5.0
"""Seconds for which a call that ends with an error waits until the beginning of its answer was taken."""


class Call:
    """A call that was begun, and who makes it.

    It is read and written as its gRPC context is, which is asked for the caller once: that costs copies.

    gRPC notes that headers were sent when the task that has sent them goes on. If that was cancelled
    before, `abort` would send them once more, gRPC would refuse that and the status with it, and the other
    end would wait in vain. So what begins an answer has a task of its own, and `abort` waits for its end.
    """

    def __init__(self, context: Context) -> None:
        self._read, self._write = context.read, context.write
        self._send_initial_metadata, self._abort = context.send_initial_metadata, context.abort
        self._begun = False
        """Whether headers were sent, or are being sent."""
        self._beginning: asyncio.Task[None] | None = None
        """Sends headers, or a first message and headers with it."""
        self.peer = str(context.peer())
        """The address of the other end, as gRPC writes it."""
        self.caller: tuple[Metadata, Peer] = (
            tuple(context.invocation_metadata() or ()),
            context.auth_context(),
        )
        """The credentials of a call and of its channel."""

    async def read(self) -> bytes | None:
        """The next message from the other end; None when there are no more."""
        data: object = await self._read()
        return data if isinstance(data, bytes) else None

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Send the headers of the answer, before any message."""
        await self._begin(self._send_initial_metadata(metadata))

    async def write(self, message: bytes) -> None:
        """Send a message; with headers, if it is the first and there were none."""
        if self._begun:
            await self._write(message)
        else:
            await self._begin(self._write(message))

    async def abort(
        self, status: grpc.StatusCode, sentence: str, trailing: tuple[tuple[str, str], ...]
    ) -> Never:
        """End the call with a status."""
        if self._beginning is not None:
            await asyncio.wait({self._beginning}, timeout=BEGINNING)
        await self._abort(status, sentence, trailing)

    async def _begin(self, sending: Coroutine[Any, Any, None]) -> None:
        self._begun = True
        task = self._beginning = asyncio.ensure_future(sending)
        task.add_done_callback(_take_error)
        try:
            await asyncio.wait({task})
            self._beginning = None
            task.result()
        finally:
            del task  # an error that it holds, and that has come through here, would hold it


def _take_error(task: asyncio.Task[None]) -> None:
    """Take the error of a task for which nobody waits any more: then the other end has gone."""
    if not task.cancelled():
        task.exception()


async def read_request(kind: type[M], call: Call, seconds: float, limit: int = MANIFEST_LIMIT) -> M:
    """The message of a call that has only one.

    Raises:
        Refused: it does not come in time, has more than `limit` bytes, or is another one.
    """
    try:
        async with asyncio.timeout(seconds):
            data = await call.read()
    except TimeoutError:
        raise Refused(Refusal.IDLE, seconds=seconds) from None
    return decode_message(kind, data or b"", limit)


@asynccontextmanager
async def idle_timeout(idle: float) -> AsyncGenerator[IdleTimeout, None]:
    """While a stream is read or written.

    Raises:
        Refused: the other end was idle for so many seconds.
    """
    timer = asyncio.timeout(None)
    try:
        async with timer:
            yield IdleTimeout(idle, timer)
    except TimeoutError:
        if not timer.expired():
            raise
        raise Refused(Refusal.IDLE, seconds=idle) from None


@contextmanager
def cancel_if_gone() -> Generator[None, None, None]:
    """While something is sent to the other end: cancel the call when that has gone.

    gRPC cancels the handler by itself, but a write in progress can fail before it does so, and would be
    taken for an error of ours.
    """
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


@contextmanager
def refuse_if_cut() -> Generator[None, None, None]:
    """While a payload travels on a data connection.

    Raises:
        Refused: the connection has ended before the payload did.
    """
    try:
        yield
    except DataConnectionError as error:
        raise Refused(Refusal.LANE, str(error)) from None
