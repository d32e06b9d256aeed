"""A file that is touched while a server answers: a health check need not start a program to ask it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two touches."""


@asynccontextmanager
async def touch_heartbeat(path: Path | None, period: float = PERIOD) -> AsyncGenerator[None, None]:
    """Touch the file from the event loop in this context; a loop that answers nobody touches nothing.

    The file is removed at the end. Without a path nothing is done.
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
    told = False
    while True:
        try:
            path.touch()
        except OSError as error:
            if not told:
                log.warning("heartbeat: %s cannot be written: %s", path, error.strerror)
            told = True
        await asyncio.sleep(period)
