"""Results of work in threads, for an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def result_of(work: Future[T]) -> T:
    """The result of work; one that is there at once is no reason to go round the event loop.

    Whoever is cancelled while it waits cancels work that has not begun. So does `asyncio.wrap_future`, but
    that leaves work and result in a circle of references: vectors of every round would stay in memory until
    the garbage collector finds them.
    """
    try:
        if not work.done():
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            work.add_done_callback(partial(_wake, loop, done))
            try:
                await done
            except asyncio.CancelledError:
                work.cancel()
                raise
        return work.result()
    finally:
        del work  # an error that it holds, and that has come through here, would hold it


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], _: Future[T]) -> None:
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(_set, done)


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
