"""The real service with a real coordinator, in a thread of its own."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from varangian.bench.wire.ways.background import Background
from varangian.bench.wire.ways.learners import MANY
from varangian.config.worker_names import default_names
from varangian.pki.authority import Authority
from varangian.protos.identity.bundle import Role
from varangian.protos.layout import Layout
from varangian.protos.payloads.encoding import FLOAT32, Dtype
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.observability.record import RoundRecord
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.checkpointing import Keeper, Plain
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rows.slot import Slot
from varangian.server.training.learner import Learner

SECRET = b"this guards nothing but a measurement"
PIECE = 1 << 20


def layout(numel: int) -> Layout:
    return Layout((("weight", (numel,)),))


class Service:
    """Serves rounds without end; each closes when every worker has pushed.

    Args:
        workers: their number.
        learner: of the run.
        f: of a rule, if there is one.
        dtype: how vectors travel.
        tls: with certificates.
        data_channel: whether payloads travel beside gRPC; otherwise as chunks.
        keeper: of checkpoints, if they are part of what is measured.
        state: from which to go on, as the tree of a checkpoint.
    """

    def __init__(
        self,
        workers: int,
        learner: Learner,
        f: int = 0,
        *,
        dtype: Dtype = FLOAT32,
        tls: bool = False,
        data_channel: bool = True,
        keeper: Keeper | None = None,
        state: Plain | None = None,
    ) -> None:
        self.names = default_names(workers)
        self.numel = learner.parameters.numel()
        self._folder = tempfile.TemporaryDirectory(prefix="varangian-bench-") if tls else None
        self._security = create_security(Path(self._folder.name), self.names) if self._folder else None
        self._data_port = 0 if data_channel else None
        self._keeper, self._state = keeper, state
        self._committed: dict[int, float] = {}
        self._background = Background()
        policy = RunPolicy(self.names, MANY, workers, MANY, shortfall="wait", f=f, selection=Everyone())
        self._background.run(self._start(Machine(policy), learner, dtype))

    async def _start(self, machine: Machine, learner: Learner, dtype: Dtype) -> None:
        self._stop = asyncio.Event()
        self._coordinator = Coordinator(
            machine,
            learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=MANY,
            observe=self._observe,
            keeper=self._keeper,
            state=self._state,
        )
        ready = asyncio.get_running_loop().create_future()
        self._served = asyncio.create_task(
            serve(
                self._coordinator,
                self._sessions(),
                layout(self.numel),
                run_id="bench",
                host="127.0.0.1",
                port=0,
                ready=ready.set_result,
                stop=self._stop,
                dtype=dtype,
                limits=Limits(downloads=MANY, grace=0.1),
                security=self._security,
                data_port=self._data_port,
            )
        )
        await asyncio.wait({ready, self._served}, return_when=asyncio.FIRST_COMPLETED)
        if self._served.done():
            await self._served
        self.address = f"{ready.result()} {self._folder.name if self._folder else ''}"

    def _observe(self, record: RoundRecord) -> None:
        if record.skipped:
            raise RuntimeError(record.skipped)
        self._committed[record.round] = time.perf_counter()

    def _sessions(self) -> Sessions:
        if self._security is None:
            return Sessions(self.names, SECRET)
        return Sessions(self.names, None, certificate_reader=self._security.certificate_reader)

    def push_by_hand(self, vector: memoryview) -> None:
        """Carry out round 0 with this vector from every worker, without the network."""
        self._background.run(self._pushed(vector))

    async def _pushed(self, vector: memoryview) -> None:
        for name in self.names:
            slot = await self._coordinator.offer(name, 0, b"")
            assert isinstance(slot, Slot)
            for at in range(0, slot.size, PIECE):
                await slot.put(vector[at : min(at + PIECE, slot.size)])
            await self._coordinator.complete(slot)

    def until(self, round: int) -> None:
        """Wait for a round to open."""
        while self._background.run(self._now()) != round:
            time.sleep(0.001)

    def committed(self, round: int) -> float:
        """Wait until a round is committed; returns the time by `perf_counter`, a clock of all processes."""
        while round not in self._committed:
            self._background.run(self._now())
            time.sleep(0.001)
        return self._committed[round]

    async def _now(self) -> int:
        if self._served.done():
            await self._served
            raise RuntimeError("the run has ended")
        return self._coordinator.round

    def close(self) -> None:
        self._background.run(self._ended())
        self._background.close()
        if self._folder:
            self._folder.cleanup()

    async def _ended(self) -> None:
        self._stop.set()
        await self._served


def create_security(folder: Path, workers: tuple[str, ...]) -> Security:
    authority = Authority.create(folder, days=1)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    for name in workers:
        authority.issue(name, Role.WORKER, days=1)
    return Security(folder)
