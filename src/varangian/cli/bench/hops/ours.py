"""Our own wire: the real service, driver and client, and a learner that does nothing.

The learner waits in its thread while a round is measured and moves no parameters, so that what is measured
is the way of the bytes: from the worker's vector to the server's row, checked, screened and counted.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.cli.bench.hops.background import Background
from varangian.cli.bench.hops.base import Floats, Job, digests
from varangian.protos.bundle import Role
from varangian.protos.codec import FLOAT32, Dtype
from varangian.protos.layout import Layout
from varangian.server.authority import Authority
from varangian.server.driver import Driver
from varangian.server.events import RoundPolicy
from varangian.server.intake import Slot
from varangian.server.learner import Begun, Learner, Step
from varangian.server.optimizer import Sgd
from varangian.server.roster import Roster, make_token
from varangian.server.round import RoundMachine
from varangian.server.service import serve
from varangian.server.tls import Security
from varangian.worker.client import Client, Pulled
from varangian.worker.names import names
from varangian.worker.tls import bundle_of, credentials

Direction = Literal["push", "pull"]
SECRET = b"this guards nothing but a measurement"
MANY = 10**9
"""Rounds, and seconds of a deadline: no measurement ends by itself."""
PIECE = 1 << 20


class Idle(Learner):
    """Keeps the rows of the last round until it is told to go on, and learns nothing."""

    def __init__(self, numel: int) -> None:
        zeros = torch.zeros(numel)
        super().__init__(zeros, Aggregator(Mean()), Sgd(lr=1.0), rounds=MANY, seed=1)
        self.go = threading.Semaphore(0)
        self.rows: Mapping[str, Tensor] = {}

    def begin(self, workers: Sequence[str], faults: int) -> Begun:
        begun = super().begin(workers, faults)
        begun.work.lost = True  # nothing is aggregated early either
        return begun

    def step(
        self,
        round: int,
        rows: Mapping[str, Tensor],
        faults: Mapping[str, str],
        begun: Begun | None = None,
    ) -> Step:
        self.rows = rows
        self.go.acquire()
        return Step(0.0, None, 0.0, dict(faults), {}, 1.0, {"aggregate": 0.0, "step": 0.0})


class Server:
    """The service in a thread of its own."""

    def __init__(self, job: Job, direction: Direction, dtype: Dtype, tls: bool) -> None:
        self._names = names(job.workers)
        self._folder = tempfile.TemporaryDirectory(prefix="varangian-bench-") if tls else None
        self._security = _security(Path(self._folder.name), self._names) if self._folder else None
        self._learner = Idle(job.numel)
        policy = RoundPolicy(self._names, MANY, quorum=job.workers, deadline=MANY, shortfall="wait", f=0)
        self._round, self._direction, self._job = 0, direction, job
        self._background = Background()
        self._background.run(self._start(policy, dtype))
        if direction == "push":
            self._background.run(self._begun())

    async def _start(self, policy: RoundPolicy, dtype: Dtype) -> None:
        self._stop = asyncio.Event()
        self._driver = Driver(
            RoundMachine(policy),
            self._learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=MANY,
            observe=lambda _: None,
        )
        ready = asyncio.get_running_loop().create_future()
        self._served = asyncio.create_task(
            serve(
                self._driver,
                self._roster(),
                _layout(self._job),
                run_id="bench",
                host="127.0.0.1",
                port=0,
                ready=ready.set_result,
                stop=self._stop,
                dtype=dtype,
                credentials=self._security.credentials() if self._security else None,
            )
        )
        await asyncio.wait({ready, self._served}, return_when=asyncio.FIRST_COMPLETED)
        if self._served.done():
            await self._served
        self.address = f"{ready.result()} {self._folder.name if self._folder else ''}"

    async def _begun(self) -> None:
        """One round past the network: every later one begins with a learner that waits for leave."""
        nothing = bytes(PIECE)
        for name in self._names:
            slot = await self._driver.offer(name, 0, b"")
            assert isinstance(slot, Slot)
            for at in range(0, slot.size, PIECE):
                await slot.put(nothing[: slot.size - at])
            await self._driver.complete(slot)

    def _roster(self) -> Roster:
        if self._security is None:
            return Roster(self._names, SECRET)
        return Roster(self._names, None, doorman=self._security.doorman)

    def ready(self) -> None:
        if self._direction == "pull":
            return
        self._learner.go.release()
        self._round += 1
        while self._background.run(self._now()) != self._round:
            time.sleep(0.001)

    async def _now(self) -> int:
        return self._driver.round

    def digests(self) -> list[str] | None:
        """Of the rows, as the learner has got them."""
        if self._direction == "pull":
            return None
        found = [self._learner.rows[name] for name in self._names]
        result = digests([row.numpy() for row in found])
        for row in found:
            row.zero_()
        return result

    def close(self) -> None:
        self._learner.go.release(2)
        self._background.run(self._ended())
        self._background.close()
        if self._folder:
            self._folder.cleanup()

    async def _ended(self) -> None:
        self._stop.set()
        await self._served


class Workers:
    """A client for each worker, all on one event loop."""

    def __init__(self, address: str, job: Job, direction: Direction) -> None:
        self._address, _, folder = address.partition(" ")
        self._job, self._direction, self._round = job, direction, 0
        self._vectors = [torch.from_numpy(vector) for vector in job.vectors()]
        self._pulled: list[Floats] = []
        self._runner = asyncio.Runner()
        self._clients = self._runner.run(self._joined(Path(folder) if folder else None))

    async def _joined(self, folder: Path | None) -> list[Client]:
        layout = _layout(self._job)
        clients = [self._client(name, layout, folder) for name in names(self._job.workers)]
        await asyncio.gather(*(client.join() for client in clients))
        return clients

    def _client(self, name: str, layout: Layout, folder: Path | None) -> Client:
        if folder is None:
            return Client(self._address, name, make_token(name, SECRET), layout)
        return Client(self._address, name, None, layout, credentials=credentials(bundle_of(folder, name)))

    def round(self) -> None:
        self._runner.run(self._pushed() if self._direction == "push" else self._all_pulled())

    async def _pushed(self) -> None:
        self._round += 1
        receipts = await asyncio.gather(
            *(
                client.push(self._round, vector)
                for client, vector in zip(self._clients, self._vectors, strict=True)
            )
        )
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


class Ours:
    """Push in clear text."""

    direction: Direction = "push"
    dtype: Dtype = FLOAT32
    tls = False

    def serve(self, job: Job) -> Server:
        torch.set_num_threads(1)
        return Server(job, self.direction, self.dtype, self.tls)

    def connect(self, address: str, job: Job) -> Workers:
        torch.set_num_threads(1)
        return Workers(address, job, self.direction)

    def expected(self, job: Job) -> list[str]:
        if self.direction == "pull":
            return digests([np.zeros(job.numel, np.float32)] * job.workers)
        if self.dtype != FLOAT32:
            rounded = (torch.from_numpy(vector).bfloat16().float() for vector in job.vectors())
            return digests([vector.numpy() for vector in rounded])
        return digests(job.vectors())


class Secured(Ours):
    """Push over mutual TLS."""

    tls = True


class Halved(Ours):
    """Push of bfloat16."""

    dtype = "bfloat16"


class Pull(Ours):
    """One snapshot to all workers at once."""

    direction = "pull"


def _layout(job: Job) -> Layout:
    return Layout((("weight", (job.numel,)),))


def _security(folder: Path, workers: tuple[str, ...]) -> Security:
    authority = Authority.create(folder, days=1)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    for name in workers:
        authority.issue(name, Role.WORKER, days=1)
    return Security(folder)
