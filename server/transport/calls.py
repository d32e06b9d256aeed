"""Reading and writing streams without letting the other end decide how long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Limits:
    """What one caller may cost."""

    idle: float = 10.0
    """Seconds without a message after which a stream is given up."""
    joining: float = 60.0
    """Seconds for the message of a join: a large model has a long layout, and a line may be slow."""
    streams: int = 2
    """Streams that one worker may have open: a second one, so that a retry need not wait for a dead one."""
    receiving: int = 4
    """Uploads that receive at the same time."""
    turn: float = 0.25
    """Seconds that an upload receives while others wait."""
    share: int = 4 << 20
    """Bytes that it receives in a turn: about a block of columns, so that rows grow together."""
    uploads: int = 16
    """Uploads that one worker may begin in a round."""
    downloads: int = 8
    """Downloads of the same parameters that one worker may have at once; more come by and by."""
    joins: int = 20
    """Joins of one worker at once; more come by and by."""
    calls: float = 25.0
    """Calls of one caller in a second; those that a round needs are given back."""
    calls_at_once: int = 100
    """The same after a while without any."""
    status: float = 0.25
    """Seconds for which one reply to Status is sent to everybody who asks."""
    patience: float = 5.0
    """Seconds that a pull waits for a round to open before the worker has to ask again."""
    grace: float = 5.0
    """Seconds for the workers to hear that the run is finished."""
    age: float = 3600.0
    """Seconds for which a call that is to stay open does so; then it is made anew."""


DEFAULT_LIMITS = Limits()


def caller(context: Context) -> tuple[Metadata, Peer]:
    """What a call and its channel say about who is calling."""
    return tuple(context.invocation_metadata() or ()), context.auth_context()


async def read_message(context: Context) -> bytes | None:
    """The next message from the other end; None when there are no more."""
    data: object = await context.read()
    return data if isinstance(data, bytes) else None


async def read_request(kind: type[M], context: Context, seconds: float, limit: int = MANIFEST_LIMIT) -> M:
    """The message of a call that has only one.

    Raises:
        Refused: when it is not there in time.
        Refused: when it has more than `limit` bytes, or is another one.
    """
    async with idle_timeout(seconds) as quiet:
        data = await quiet.broken_by(read_message(context))
    return decode_message(kind, data or b"", limit)


@asynccontextmanager
async def idle_timeout(idle: float) -> AsyncGenerator[IdleTimeout, None]:
    """For as long as the stream is read or written.

    Raises:
        Refused: after `idle` seconds in which the other end let us wait.
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
def unless_gone() -> Generator[None, None, None]:
    """For what is sent to the other end: when it has gone, the call is cancelled.

    gRPC cancels the handler by itself, but a write in progress can fail before it does so, and would be
    taken for an error of ours.
    """
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


@contextmanager
def unless_cut() -> Generator[None, None, None]:
    """For what travels beside gRPC.

    Raises:
        Refused: the connection has ended before the payload did.
    """
    try:
        yield
    except DataConnectionError as error:
        raise Refused(Refusal.LANE, str(error)) from None
