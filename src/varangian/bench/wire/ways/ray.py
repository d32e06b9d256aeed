"""Ray: each worker puts its vector into Ray's object store, and the server gets it there (shared memory).

Run with Ray 2.60. Of the processors' time only that of the two processes which use Ray is counted, not that
of Ray's own.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import threading
from typing import Any

from varangian.bench.wire.ways.base import Job, Pushing, RowServer

BOX = "varangian-bench"
"""Namespace and name of the mailbox."""


class Mailbox:
    """A queue of references to vectors, from the workers to the server; Ray runs it as an actor."""

    def __init__(self) -> None:
        self._references = asyncio.Queue[Any]()
        self._answers = asyncio.Queue[None]()

    async def give(self, references: Any) -> None:
        """Returns when the server has received every vector."""
        await self._references.put(references)
        await self._answers.get()

    async def take(self) -> Any:
        return await self._references.get()

    async def done(self) -> None:
        await self._answers.put(None)


class Server(RowServer):
    """Copies vectors out of the store into its rows."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        token = secrets.token_hex(32)
        _authenticate(token)
        self._ray = importlib.import_module("ray")
        room = max(1 << 28, 3 * job.total)
        found = self._ray.init(
            include_dashboard=False,
            log_to_driver=False,
            namespace=BOX,
            object_store_memory=room,
            logging_level=logging.WARNING,
        )
        self.address = f"{token}@{found.address_info['address']}"
        kind = self._ray.remote(num_cpus=0, max_concurrency=8)(Mailbox)
        self._box = kind.options(name=BOX).remote()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            references = self._ray.get(self._box.take.remote())
            for row, vector in zip(self._rows, self._ray.get(references), strict=True):
                row[:] = vector
            self._ray.get(self._box.done.remote())

    def close(self) -> None:
        self._ray.shutdown()


class Workers:
    """One after the other, since all of them share a store and its memory."""

    def __init__(self, address: str, job: Job) -> None:
        self._vectors = job.vectors()
        token, _, cluster = address.partition("@")
        _authenticate(token)
        self._ray = importlib.import_module("ray")
        self._ray.init(address=cluster, namespace=BOX, log_to_driver=False, logging_level=logging.WARNING)
        self._box = self._ray.get_actor(BOX)

    def round(self) -> None:
        references = [self._ray.put(vector) for vector in self._vectors]
        # Inside a list, so that Ray passes the references and not the vectors.
        self._ray.get(self._box.give.remote(references))

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._ray.shutdown()


class Ray(Pushing):
    """`put` of each worker, `get` of the server."""

    server, workers = Server, Workers


def _authenticate(token: str) -> None:
    """Let only processes with this token join; without one, Ray would leave a token in the home folder."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
