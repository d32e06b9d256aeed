"""One upload of each worker at a time: a newer one ends an older one, often that of a dead connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal


@dataclass(eq=False)
class OpenUpload:
    """The upload that a worker has open."""

    task: asyncio.Task[object]
    replaced: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def replace(self) -> None:
        if not self.replaced:
            self.replaced = True
            self.task.cancel()


class OpenUploads:
    """The open upload of each worker."""

    def __init__(self) -> None:
        self._turns: dict[str, OpenUpload] = {}

    @asynccontextmanager
    async def upload(self, worker: str) -> AsyncGenerator[None, None]:
        """Be the only upload of a worker, once the one before has let go of its row.

        Raises:
            Refused: a newer one has come.
        """
        while (before := self._turns.get(worker)) is not None:
            before.replace()
            await before.over.wait()
        task = asyncio.current_task()
        assert task is not None
        mine = self._turns[worker] = OpenUpload(task)
        try:
            yield
        except asyncio.CancelledError:
            if not mine.replaced or task.uncancel():
                raise
            raise Refused(Refusal.REPLACED) from None
        finally:
            del self._turns[worker]
            mine.over.set()
