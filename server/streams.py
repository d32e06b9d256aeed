"""Reading and writing streams without letting the other end decide how long that takes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc.aio

from varangian.server import answers
from varangian.server.roster import Metadata, Peer

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Requests: TypeAlias = AsyncIterator[bytes]


@dataclass(frozen=True)
class Limits:
    """What one caller may cost."""

    idle: float = 10.0
    """Seconds without a message after which a stream is given up."""
    streams: int = 2
    """Streams that one worker may have open: a second one, so that a retry need not wait for a dead one."""
    receiving: int = 4
    """Uploads that receive at the same time."""
    turn: float = 0.25
    """Seconds that an upload receives while others wait."""
    patience: float = 5.0
    """Seconds that a pull waits for a round to open before the worker has to ask again."""
    grace: float = 5.0
    """Seconds for the workers to hear that the run is finished."""


DEFAULT_LIMITS = Limits()


def caller(context: Context) -> tuple[Metadata, Peer]:
    """What a call and its channel say about who is calling."""
    return tuple(context.invocation_metadata() or ()), context.auth_context()


class Quota:
    """How many streams each worker has open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = Counter[str]()

    @contextmanager
    def stream(self, worker: str) -> Generator[None, None, None]:
        """One stream, for as long as the context lasts.

        Raises:
            Refused: when the worker has as many as it may have.
        """
        if self._open[worker] >= self._most:
            raise answers.too_many_streams(self._most)
        self._open[worker] += 1
        try:
            yield
        finally:
            self._open[worker] -= 1


async def received(requests: Requests, idle: float) -> bytes | None:
    """The next message of a push; None at its end."""
    try:
        async with asyncio.timeout(idle):
            return await anext(requests, None)
    except TimeoutError:
        raise answers.idle(idle) from None


async def sent(context: Context, message: bytes, idle: float) -> None:
    """Write once the other end has taken enough of what was written before."""
    try:
        async with asyncio.timeout(idle):
            with unless_gone():
                await context.write(message)
    except TimeoutError:
        raise answers.idle(idle) from None


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
