"""Whole rounds: vectors arrive, at the pace of a network if asked for, and become a step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import torch

from varangian.aggregators import aggregator_from
from varangian.bench.wire.ways import ours
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.learners import MANY
from varangian.bench.wire.ways.service import Service
from varangian.protos.data_channel.connection import DataConnection, Transfer
from varangian.protos.layout import Layout
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.worker.transport.payloads.data_channel import LeasedConnection
from varangian.worker.transport.tls import Proof

PIECE = 256 << 10
"""Bytes that are waited for at a time."""


class Server:
    """The service with a learner that aggregates and steps."""

    def __init__(self, job: Job, rule: str, f: int) -> None:
        aggregator = aggregator_from(rule, "--rules", f=f)
        learner = Learner(
            torch.zeros(job.numel, dtype=torch.float32), aggregator, Sgd(lr=1e-3), rounds=MANY, seed=1
        )
        self._service = Service(job.workers, learner, f)
        self.address = self._service.address
        self._round = 0
        self._service.push_by_hand(
            torch.linspace(1, 2, job.numel, dtype=torch.float32).numpy().data.cast("B")
        )

    def ready(self) -> None:
        self._round += 1
        self._service.until(self._round)

    def done(self) -> float:
        """Time at which the latest round was over."""
        return self._service.committed(self._round)

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._service.close()


class RateLimit:
    """Lets so many bytes a second through, those of all senders together."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """None: whatever goes."""
        self.passed = 0
        self._free = 0.0

    async def take(self, size: int) -> None:
        self.passed += size
        if self.rate is None:
            return
        now = time.perf_counter()
        self._free = max(self._free, now) + size / self.rate
        await asyncio.sleep(max(self._free - now, 0.0))


class Workers(ours.Workers):
    """Clients that share a line."""

    def __init__(self, address: str, job: Job) -> None:
        self._bucket = RateLimit()
        super().__init__(address, job, connect=self._paced)

    def _paced(self, server: str, name: str, proof: Proof, layout: Layout) -> PacedClient:
        return PacedClient(self._bucket, server, name, proof, layout)

    def pace(self, rate: float | None) -> None:
        """Bytes a second, of all senders together."""
        self._bucket.rate = rate

    def round(self) -> None:
        before = self._bucket.passed
        super().round()
        if self._bucket.passed - before < self._job.total:
            raise RuntimeError("not everything went through the bucket")


class PacedClient(ours.WatchedClient):
    """A client on a line that others use, too."""

    def __init__(
        self, bucket: RateLimit, server: str, name: str, proof: Proof, layout: Layout, **options: Any
    ) -> None:
        self._bucket, self._size = bucket, 4 * layout.numel
        super().__init__(server, name, proof, layout, **options)
        push = self._connection.calls.push
        self._connection.calls.push = lambda **given: PacedCall(push(**given), bucket)

    def counting_channel(self, server: str, encrypted: bool) -> ours.CountingChannel:
        return PacedChannel(self._bucket, self._size, server, encrypted)


class PacedCall:
    """A call that writes when there is room on the line."""

    def __init__(self, call: Any, bucket: RateLimit) -> None:
        self._call = call
        self._bucket = bucket

    async def write(self, message: bytes) -> None:
        await self._bucket.take(len(message))
        await self._call.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        found: Generator[Any, None, Any] = self._call.__await__()
        return found


class PacedChannel(ours.CountingChannel):
    """A data channel with the same limit."""

    def __init__(self, bucket: RateLimit, size: int, server: str, encrypted: bool) -> None:
        super().__init__(server, encrypted)
        self._bucket, self._size = bucket, size

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[LeasedConnection, None]:
        async with super().lease() as leased:
            connected = leased.connected
            if connected is None:
                yield leased
                return
            connection = connected.data
            connected.data = PacedConnection(connection, self._bucket, self._size)  # type: ignore[assignment]
            try:
                yield leased
            finally:
                connected.data = connection


class PacedConnection:
    """Writes a little at a time."""

    def __init__(self, line: DataConnection, bucket: RateLimit, size: int) -> None:
        self._line, self._bucket = line, bucket
        self._left, self._paid = size, 0

    async def send(self, cargo: Transfer) -> int:
        if self._bucket.rate is None:
            moved = await self._line.send(cargo)
            await self._bucket.take(moved)
            return moved
        due = min(PIECE, self._left) - self._paid
        await self._bucket.take(due)
        moved = await self._line.send(cargo, PIECE)
        self._paid += due - moved
        self._left -= moved
        if self._paid < 0:  # a piece of a vector may be larger
            await self._bucket.take(-self._paid)
            self._paid = 0
        return moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)


class Round:
    """A whole round: rows arrive, are aggregated and make a step."""

    def __init__(self, rule: str, f: str) -> None:
        self._rule, self._f = rule, int(f)

    def serve(self, job: Job) -> Server:
        torch.set_num_threads(1)
        return Server(job, self._rule, self._f)

    def connect(self, address: str, job: Job) -> Workers:
        torch.set_num_threads(1)
        return Workers(address, job)

    def expected(self, job: Job, rounds: int) -> list[str]:
        return []


class Receive(ours.Push):
    """A round without aggregation and step."""

    def connect(self, address: str, job: Job) -> Workers:
        torch.set_num_threads(1)
        return Workers(address, job)
