"""Reading and writing streams without letting the other end decide how long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias, TypeVar

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


class Call:
    """A call that was begun, and who makes it.

    It is read and written as its gRPC context is, which is asked for the caller once: that costs copies.
    """

    def __init__(self, context: Context) -> None:
        self._read, self.write = context.read, context.write
        self.send_initial_metadata, self.abort = context.send_initial_metadata, context.abort
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
