"""Workers that hang up, come twice, repeat themselves and stop midway: what is aggregated is in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest
import torch
from tests.extent import examples, patience
from tests.history import Recorder, RecordingMachine, Rules, check
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.aggregators.graphs import Exponential
from varangian.protos.payloads.encoding import payload_digest
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.protocol.events import Close
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator, Overtaken, Slot
from varangian.server.rows.source import Pushed, StepInput
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

N, D, ROUNDS = 6, 8, 60
NAMES = tuple(f"w{i:02}" for i in range(N))
WAYS = {
    "fedavg": (LongestAbsent(2, gather=0.002), 4),
    "async": (BufferSelection(3, tau=3), N),
    "asap": (NeighbourhoodSelection(Exponential()), N),
}


class Checked(Pushed):
    """Remembers what was aggregated: the number that each vector consists of."""

    def __init__(self) -> None:
        self.used: list[tuple[str, int, float]] = []

    def step_input(self, close: Close, rows: Mapping[str, Tensor]) -> StepInput:
        for worker, row in rows.items():
            assert bool((row == row[0]).all()), f"a torn vector of {worker}: {row.tolist()}"
            self.used.append((worker, close.round - close.ages[worker], row[0].item()))
        return super().step_input(close, rows)


class Disorderly:
    """A worker that does what can go wrong."""

    def __init__(self, name: str, coordinator: Coordinator, chance: random.Random) -> None:
        self.name, self.coordinator, self.chance = name, coordinator, chance
        self.counted: list[tuple[str, int, float]] = []
        self.sent = 0

    async def work(self) -> None:
        after = -1
        while True:
            async with self.coordinator.pulls.answered(self.name, after, 0.005) as pull:
                snapshot = pull.snapshot
                if snapshot is None:
                    continue
                if snapshot.finished:
                    return
                if self.chance.random() < 0.2:
                    continue  # the model did not arrive
                pull.delivered = True
            after = snapshot.round
            for _ in range(self.chance.choice((1, 1, 1, 2))):
                await self._push(snapshot.round)
            if self.chance.random() < 0.1:
                after = -1  # started again

    async def _push(self, round: int) -> None:
        self.sent += 1
        value = float(self.sent)
        payload = torch.full((D,), value).numpy().tobytes()
        for _ in range(self.chance.choice((1, 2))):  # the second is the retry of one whose answer was lost
            slot = await self.coordinator.offer(self.name, round, payload_digest(payload))
            if isinstance(slot, Slot):
                await self._fill(slot, payload, (self.name, round, value))

    async def _fill(self, slot: Slot, payload: bytes, push: tuple[str, int, float]) -> None:
        stops_at = self.chance.choice((5, len(payload), len(payload), len(payload)))
        try:
            for start in range(0, stops_at, 7):
                await slot.put(payload[start : min(start + 7, stops_at)])
                await asyncio.sleep(0)
        except Overtaken:
            stops_at = 0
        if stops_at < len(payload):
            await self.coordinator.release(slot)
        elif await self.coordinator.complete(slot) is None:
            self.counted.append(push)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(examples(3, few=1)))
def test_every_vector_is_whole_and_counts_once(way: str, seed: int):
    choice, row_slots = WAYS[way]
    row_source, workers, recorder = Checked(), list[Disorderly](), Recorder()

    async def run() -> None:
        policy = RunPolicy(
            NAMES,
            ROUNDS,
            quorum=1,
            deadline=0.02,
            shortfall="skip",
            f=N - 1,
            selection=choice,
            max_skips=ROUNDS,
        )
        learner = Learner(torch.zeros(D), Aggregator(Mean()), Sgd(lr=1e-3), rounds=ROUNDS, seed=1)
        machine = RecordingMachine(policy, recorder)
        machine.parameters = learner.digest
        coordinator = Coordinator(
            machine,
            learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=1000,
            observe=lambda _: None,
            row_source=row_source,
            row_slots=row_slots,
        )
        workers.extend(Disorderly(name, coordinator, random.Random(f"{seed}/{name}")) for name in NAMES)
        served = asyncio.create_task(coordinator.run(asyncio.Event()))
        await asyncio.gather(*(worker.work() for worker in workers))
        assert await served == f"all {ROUNDS} rounds are done"

    asyncio.run(asyncio.wait_for(run(), patience(100)))
    # On a busy machine many rounds are over before anybody has answered.
    assert len(set(row_source.used)) == len(row_source.used) > 0
    assert set(row_source.used) <= {push for worker in workers for push in worker.counted}
    assert check(recorder.events, Rules(quorum=1, honest=NAMES)) == []
