"""Ray: vectors are put into its store, and the server gets them there: on one machine, shared memory.

Of the processors' time only that of the two processes which use Ray is counted, not that of Ray's own.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from typing import Any

from varangian.bench.wire.ways.base import Job, Pushing, digests

BOX = "varangian-bench"


class Mailbox:
    """Where the server hears of vectors; Ray runs it as an actor."""

    def __init__(self) -> None:
        self._letters = asyncio.Queue[Any]()
        self._answers = asyncio.Queue[None]()

    async def give(self, letter: Any) -> None:
        """Returns when everything in it has arrived."""
        await self._letters.put(letter)
        await self._answers.get()

    async def take(self) -> Any:
        return await self._letters.get()

    async def done(self) -> None:
        await self._answers.put(None)


class Server:
    """Copies what is in the store into its rows."""

    def __init__(self, job: Job) -> None:
        self._rows = job.rows()
        self._ray = importlib.import_module("ray")
        room = max(1 << 28, 3 * job.total)
        found = self._ray.init(
            include_dashboard=False, log_to_driver=False, namespace=BOX, object_store_memory=room
        )
        self.address = str(found.address_info["address"])
        kind = self._ray.remote(num_cpus=0, max_concurrency=8)(Mailbox)
        self._box = kind.options(name=BOX).remote()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            references = self._ray.get(self._box.take.remote())
            for row, vector in zip(self._rows, self._ray.get(references), strict=True):
                row[:] = vector
            self._ray.get(self._box.done.remote())

    def ready(self) -> None:
        pass

    def digests(self) -> list[str]:
        found = digests(self._rows)
        self._rows.fill(0)
        return found

    def close(self) -> None:
        self._ray.shutdown()


class Workers:
    """One after the other, since all of them share a store and its memory."""

    def __init__(self, address: str, job: Job) -> None:
        self._vectors = job.vectors()
        self._ray = importlib.import_module("ray")
        self._ray.init(address=address, namespace=BOX, log_to_driver=False)
        self._box = self._ray.get_actor(BOX)

    def round(self) -> None:
        references = [self._ray.put(vector) for vector in self._vectors]
        # Inside a list, so that Ray hands on the references and not what they stand for.
        self._ray.get(self._box.give.remote(references))

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._ray.shutdown()


class Ray(Pushing):
    """`put` of each worker, `get` of the server."""

    def serve(self, job: Job) -> Server:
        return Server(job)

    def connect(self, address: str, job: Job) -> Workers:
        return Workers(address, job)
