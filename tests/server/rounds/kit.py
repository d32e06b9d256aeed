"""A coordinator at work in memory: no gRPC, no sleeping; time moves when a test says so."""

import asyncio

import torch
from tests.extent import patience

from varangian.protos.encoding import payload_digest
from varangian.protos.refusals import Refusal
from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.machine import Machine
from varangian.server.rounds.coordinator import Coordinator, Slot

D = 3


class Driven:
    """What the coordinator recorded, and workers that push constants."""

    def __init__(self, time, policy, learner, evaluate=lambda _: (0.0, 0.5), evaluate_every=100, **options):
        self.time, self.machine, self.learner = time, Machine(policy), learner
        self.records: list[RoundRecord] = []
        self.stop = asyncio.Event()
        self.coordinator = Coordinator(
            self.machine,
            learner,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            observe=self.records.append,
            clock=time.clock,
            **options,
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(self.coordinator.run(self.stop))
        return self

    async def __aexit__(self, *error):
        self.stop.set()
        if error[0] is None:
            await self.task

    async def offer(self, worker, value, round=None):
        payload = torch.full((D,), value).numpy().tobytes()
        round = self.coordinator.round if round is None else round
        slot = await self.coordinator.offer(worker, round, payload_digest(payload))
        if isinstance(slot, Slot):
            await slot.put(payload)
        return slot

    async def push(self, worker, value, round=None):
        slot = await self.offer(worker, value, round)
        return slot if isinstance(slot, Refusal) else await self.coordinator.complete(slot)

    async def opened(self, round):
        snapshot = await self.coordinator.snapshot(round - 1, 1e9)
        assert snapshot.round == round
        return snapshot

    async def ended(self):
        return await asyncio.wait_for(asyncio.shield(self.task), patience(100))
