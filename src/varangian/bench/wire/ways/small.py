"""Whole rounds of a small model, and a bare pair of grpc.aio calls that moves the same bytes.

A turn is many rounds, so that what happens once in a turn does not count.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from torch import Tensor

from varangian.aggregators import aggregator_from
from varangian.bench.wire.ways.background import Background
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.learners import MANY
from varangian.bench.wire.ways.service import SECRET, Service, create_security, layout
from varangian.config.worker_names import default_names
from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY
from varangian.protos.network.dial import open_aio_channel
from varangian.protos.network.malloc import keep_large_blocks
from varangian.server.identity.sessions import make_token
from varangian.server.observability.record import RoundRecord
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.worker.loop import work
from varangian.worker.transport.client import Client
from varangian.worker.transport.tls import credentials, load_worker_bundle

ROUNDS = 100
"""Rounds in a turn."""
RULE = "trimmed_mean"
BARE = "bench.Small"
OWN = (("grpc.use_local_subchannel_pool", 1),)
"""A connection for each worker, as in a run."""


class RecordingService(Service):
    """The service, with the record of each round written to a file as in a run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._records = tempfile.TemporaryFile("w", buffering=1)  # noqa: SIM115
        super().__init__(*arguments, **options)

    def _observe(self, record: RoundRecord) -> None:
        self._records.write(f"{record.json()}\n")
        super()._observe(record)


class RealServer:
    """Coordinator, learner and records of a run."""

    def __init__(self, job: Job, tls: bool) -> None:
        f = (job.workers - 1) // 2
        parameters, rule = (
            torch.zeros(job.numel, dtype=torch.float32),
            aggregator_from(RULE, "--small", f=f),
        )
        learner = Learner(parameters, rule, Sgd(lr=1e-3), rounds=MANY, seed=1)
        self._service = RecordingService(job.workers, learner, f, tls=tls)
        self.address = self._service.address

    def ready(self) -> None:
        pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._service.close()


class RealWorkers:
    """The loop of a worker for each, with a gradient that costs nothing."""

    def __init__(self, address: str, job: Job) -> None:
        server, _, folder = address.partition(" ")
        self._names = default_names(job.workers)
        self._vectors = {
            name: torch.from_numpy(vector) for name, vector in zip(self._names, job.vectors(), strict=True)
        }
        self._last = -1
        """The round after which the workers wait for the next turn."""
        self._runner = asyncio.Runner()
        self._runner.run(self._begin(server, Path(folder) if folder else None, job.numel))

    async def _begin(self, server: str, folder: Path | None, numel: int) -> None:
        self._at_rest, self._turn = asyncio.Semaphore(0), asyncio.Condition()
        self._clients = [
            Client(
                server,
                name,
                make_token(name, SECRET) if folder is None else load_worker_bundle(folder, name),
                layout(numel),
            )
            for name in self._names
        ]
        self._loops = [
            asyncio.create_task(work(client, self._vector(client.name))) for client in self._clients
        ]
        await self._all_at_rest()

    def _vector(self, name: str) -> Callable[[int, Tensor], Any]:
        async def compute(round: int, parameters: Tensor) -> Tensor:
            if round > self._last:
                self._at_rest.release()
                async with self._turn:
                    await self._turn.wait_for(lambda: round <= self._last)
            return self._vectors[name]

        return compute

    async def _all_at_rest(self) -> None:
        for _ in self._names:
            await self._at_rest.acquire()

    def round(self) -> None:
        self._runner.run(self._many_rounds())

    async def _many_rounds(self) -> None:
        async with self._turn:
            self._last += ROUNDS
            self._turn.notify_all()
        await self._all_at_rest()

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._runner.run(self._left())
        self._runner.close()

    async def _left(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        async with AsyncExitStack() as stack:
            for client in self._clients:
                stack.push_async_callback(client.close)


class BareServer:
    """Two unary calls: one takes a vector, the other gives one."""

    def __init__(self, job: Job, tls: bool) -> None:
        keep_large_blocks()
        self._model = bytes(job.size)
        self._folder = tempfile.TemporaryDirectory(prefix="varangian-bench-") if tls else None
        self._background = Background()
        self._background.run(self._start(default_names(job.workers)))

    async def _start(self, names: tuple[str, ...]) -> None:
        self._server = grpc.aio.server()
        handlers: dict[str, Any] = {
            "Push": grpc.unary_unary_rpc_method_handler(self._push),
            "Pull": grpc.unary_unary_rpc_method_handler(self._pull),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(BARE, handlers),))
        if self._folder is None:
            port, path = self._server.add_insecure_port("127.0.0.1:0"), Path()
        else:
            path = create_security(Path(self._folder.name), names).bundle.path
            pair = (path / KEY).read_bytes(), (path / CERTIFICATE).read_bytes()
            secured = grpc.ssl_server_credentials([pair], (path / CA).read_bytes(), True)
            port = self._server.add_secure_port("127.0.0.1:0", secured)
        await self._server.start()
        self.address = f"127.0.0.1:{port} {self._folder.name if self._folder else ''}"

    async def _push(self, vector: bytes, context: object) -> bytes:
        return b""

    async def _pull(self, request: bytes, context: object) -> bytes:
        return self._model

    def ready(self) -> None:
        pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._background.run(self._server.stop(None))
        self._background.close()
        if self._folder:
            self._folder.cleanup()


class BareWorkers:
    """A channel for each, all on one event loop."""

    def __init__(self, address: str, job: Job) -> None:
        keep_large_blocks()
        self._vector = bytes(job.size)
        self._runner = asyncio.Runner()
        server, _, folder = address.partition(" ")
        self._runner.run(self._connect(server, folder, default_names(job.workers)))

    async def _connect(self, server: str, folder: str, names: tuple[str, ...]) -> None:
        self._channels = [
            open_aio_channel(
                server, credentials(load_worker_bundle(Path(folder), name)) if folder else None, options=OWN
            )
            for name in names
        ]
        self._calls: list[tuple[Any, Any]] = [
            (channel.unary_unary(f"/{BARE}/Pull"), channel.unary_unary(f"/{BARE}/Push"))
            for channel in self._channels
        ]
        await self._one_round()

    def round(self) -> None:
        self._runner.run(self._many_rounds())

    async def _many_rounds(self) -> None:
        for _ in range(ROUNDS):
            await self._one_round()

    async def _one_round(self) -> None:
        await asyncio.gather(*(self._exchange(pull, push) for pull, push in self._calls))

    async def _exchange(self, pull: Any, push: Any) -> None:
        await pull(b"after")
        await push(self._vector)

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._runner.run(self._left())
        self._runner.close()

    async def _left(self) -> None:
        for channel in self._channels:
            await channel.close()


class Real:
    """Varangian itself: the work of a run for each worker and round, but for the gradient."""

    tls = False

    def serve(self, job: Job) -> RealServer:
        torch.set_num_threads(1)
        return RealServer(job, self.tls)

    def connect(self, address: str, job: Job) -> RealWorkers:
        keep_large_blocks()
        torch.set_num_threads(1)
        return RealWorkers(address, job)

    def expected(self, job: Job, rounds: int) -> list[str]:
        return []


class RealTls(Real):
    """The same over mutual TLS."""

    tls = True


class Bare:
    """A unary call in each direction, and nothing else."""

    tls = False

    def serve(self, job: Job) -> BareServer:
        return BareServer(job, self.tls)

    def connect(self, address: str, job: Job) -> BareWorkers:
        return BareWorkers(address, job)

    def expected(self, job: Job, rounds: int) -> list[str]:
        return []


class BareTls(Bare):
    """The same over mutual TLS."""

    tls = True
