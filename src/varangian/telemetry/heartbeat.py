"""Heartbeat: a file that a process touches every second, so that its age says whether it still answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from varangian.structured_logs import event

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two touches of the heartbeat."""


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
                log.warning(
                    "heartbeat: %s cannot be written: %s",
                    path,
                    error.strerror,
                    extra=event("heartbeat_failed"),
                )
            warned = True
        await asyncio.sleep(period)
