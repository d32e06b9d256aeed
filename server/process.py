"""Server process setup: freeze the garbage collector, touch the heartbeat file."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two touches of the heartbeat."""


@contextmanager
def frozen_garbage_collector() -> Generator[None]:
    """Keep the garbage collector from searching the objects that exist now, in this context.

    The libraries alone are 180 000 objects. A search of all of them takes 150 ms, in which no other thread
    runs and no caller is answered. Objects that are made from now on are still searched.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@asynccontextmanager
async def touch_heartbeat(path: Path | None, period: float = PERIOD) -> AsyncGenerator[None, None]:
    """Touch a file from the event loop, so that a health check need not start a program to ask the server.

    A loop that hangs touches nothing. The file is removed at the end; without a path nothing is done.
    """
    if path is None:
        yield
        return
    beat = asyncio.create_task(_beat(path, period))
    try:
        yield
    finally:
        beat.cancel()
        await asyncio.wait({beat})
        with suppress(OSError):
            path.unlink(missing_ok=True)


async def _beat(path: Path, period: float) -> None:
    warned = False
    while True:
        try:
            path.touch()
        except OSError as error:
            if not warned:
                log.warning("heartbeat: %s cannot be written: %s", path, error.strerror)
            warned = True
        await asyncio.sleep(period)
