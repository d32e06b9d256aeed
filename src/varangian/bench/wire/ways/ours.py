"""Varangian's transport: the real service, coordinator and client, with a learner that does nothing.

The learner waits in its thread while a round is measured and moves no parameters, so that what is measured
is the way of the bytes: from the worker's vector to the server's row, checked, screened and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from varangian.bench.wire.ways.base import Floats, Job, digests
from varangian.bench.wire.ways.learners import Idle
from varangian.bench.wire.ways.service import SECRET, Service, layout
from varangian.config.worker_names import default_names
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.protos.network.malloc import keep_large_blocks
from varangian.protos.payloads.encoding import FLOAT32, Dtype, Encoding, rounding_seed
from varangian.server.identity.sessions import make_token
from varangian.worker.transport.client import Client, Pulled
from varangian.worker.transport.payloads.data_channel import DataChannel, LeasedConnection
from varangian.worker.transport.tls import Proof, load_worker_bundle

Direction = Literal["push", "pull"]


class Server:
    """The service, with a learner that holds it between two rounds."""

    def __init__(self, job: Job, direction: Direction, dtype: Dtype, tls: bool, data_channel: bool) -> None:
        self._learner = Idle(job.numel)
        self._service = Service(job.workers, self._learner, dtype=dtype, tls=tls, data_channel=data_channel)
        self.address = self._service.address
        self._round, self._direction = 0, direction
        if direction == "push":
            # Every later round begins with a learner that waits for leave to go on.
            self._service.push_by_hand(memoryview(bytes(job.size)))

    def ready(self) -> None:
        if self._direction == "push":
            self._learner.go.release()
            self._round += 1
            self._service.until(self._round)

    def digests(self) -> list[str] | None:
        """Digests of the rows that the learner was given."""
        if self._direction == "pull":
            return None
        found = [self._learner.rows[name] for name in self._service.names]
        result = digests([row.numpy() for row in found])
        for row in found:
            row.zero_()
        return result

    def close(self) -> None:
        self._learner.go.release(2)
        self._service.close()


class CountingChannel(DataChannel):
    """Counts the payloads that it carries."""

    carried = 0

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[LeasedConnection, None]:
        async with super().lease() as leased:
            yield leased
        self.carried += leased.complete


class WatchedClient(Client):
    """A client that counts the payloads on its data channel."""

    def __init__(self, server: str, name: str, proof: Proof, layout: Layout, **options: Any) -> None:
        super().__init__(server, name, proof, layout, **options)
        self.data_channel = self._connection.data_channel = self.counting_channel(
            server, isinstance(proof, Bundle)
        )

    def counting_channel(self, server: str, encrypted: bool) -> CountingChannel:
        return CountingChannel(server, encrypted)


Connect = Callable[[str, str, Proof, Layout], WatchedClient]


class Workers:
    """A client for each worker, all on one event loop."""

    def __init__(
        self,
        address: str,
        job: Job,
        direction: Direction = "push",
        data_channel: bool = True,
        connect: Connect = WatchedClient,
    ) -> None:
        self._address, _, folder = address.partition(" ")
        self._job, self._direction, self._round = job, direction, 0
        self._data_channel, self._connect = data_channel, connect
        self._vectors = [torch.from_numpy(vector) for vector in job.vectors()]
        self._pulled: list[Floats] = []
        self._runner = asyncio.Runner()
        self._clients = self._runner.run(self._joined(Path(folder) if folder else None))

    async def _joined(self, folder: Path | None) -> list[WatchedClient]:
        clients = [self._client(name, folder) for name in default_names(self._job.workers)]
        await asyncio.gather(*(client.join() for client in clients))
        return clients

    def _client(self, name: str, folder: Path | None) -> WatchedClient:
        model = layout(self._job.numel)
        proof = make_token(name, SECRET) if folder is None else load_worker_bundle(folder, name)
        return self._connect(self._address, name, proof, model)

    def round(self) -> None:
        self._round += 1
        self._runner.run(self._pushed() if self._direction == "push" else self._all_pulled())
        if {client.data_channel.carried for client in self._clients} != {self._round * self._data_channel}:
            raise ConnectionError("payloads went another way than the one that is measured")

    async def _pushed(self) -> None:
        sent = zip(self._clients, self._vectors, strict=True)
        receipts = await asyncio.gather(*(client.push(self._round, vector) for client, vector in sent))
        if refused := [receipt for receipt in receipts if not receipt.counted]:
            raise ConnectionError(f"{refused[0].code} {refused[0].sentence}")

    async def _all_pulled(self) -> None:
        answers = await asyncio.gather(*(client.pull(-1) for client in self._clients))
        self._pulled = [answer.parameters.numpy() for answer in answers if isinstance(answer, Pulled)]

    def digests(self) -> list[str] | None:
        return digests(self._pulled) if self._direction == "pull" else None

    def close(self) -> None:
        self._runner.run(self._left())
        self._runner.close()

    async def _left(self) -> None:
        async with AsyncExitStack() as stack:
            for client in self._clients:
                stack.push_async_callback(client.close)


class Push:
    """Push in clear text."""

    direction: Direction = "push"
    dtype: Dtype = FLOAT32
    tls = False
    data_channel = True
    """Payloads on connections beside gRPC."""

    def serve(self, job: Job) -> Server:
        torch.set_num_threads(1)
        return Server(job, self.direction, self.dtype, self.tls, self.data_channel)

    def connect(self, address: str, job: Job) -> Workers:
        keep_large_blocks()  # as every process that hosts workers does
        torch.set_num_threads(1)
        return Workers(address, job, self.direction, self.data_channel)

    def expected(self, job: Job, rounds: int) -> list[str]:
        if self.direction == "pull":
            return digests([np.zeros(job.numel, np.float32)] * job.workers)
        if self.dtype == FLOAT32:
            return digests(job.vectors())
        encoding, named = Encoding(job.numel, self.dtype), default_names(job.workers)
        sent = zip(named, map(torch.from_numpy, job.vectors()), strict=True)
        payloads = (encoding.encode(vector, rounding_seed(name, rounds)) for name, vector in sent)
        return digests([encoding.decode(payload).numpy() for payload in payloads])


class PushTls(Push):
    """Push over mutual TLS."""

    tls = True


class PushBf16(Push):
    """Push of bfloat16."""

    dtype = "bfloat16"


class PushInt8(Push):
    """Push of int8 blocks."""

    dtype = "int8"


class Pull(Push):
    """One snapshot to all workers at once."""

    direction = "pull"


class Chunks(Push):
    """Push with everything over gRPC, as where nothing else gets through."""

    data_channel = False


class ChunksTls(PushTls):
    """The same over mutual TLS."""

    data_channel = False


class PullChunks(Pull):
    """Pull with everything over gRPC."""

    data_channel = False
