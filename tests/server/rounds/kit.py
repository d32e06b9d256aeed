"""A coordinator at work in memory: no gRPC, no sleeping; time moves when a test says so."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.extent import patience

from varangian.protos.payloads.encoding import payload_digest
from varangian.protos.refusals import Refusal
from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.machine import Machine
from varangian.server.rounds.checkpointing import ServerState
from varangian.server.rounds.coordinator import Coordinator, Slot
from varangian.state_file import flatten, unflatten

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


def filed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a state file would give back: tensors in memory of their own, the rest as text."""
    plain, tensors = flatten(tree)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return unflatten(json.loads(json.dumps(plain)), copies)


def written() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Memory:
    """A keeper that keeps everything in memory."""

    every: int = 1
    asked: list[int] = field(default_factory=list)
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    more: list[Mapping[str, Any]] = field(default_factory=list)
    during: Callable[[], object] = lambda: None
    written: threading.Event = field(default_factory=written)
    """Set once all that was kept is on the disk, as it is by default."""

    def due(self, following: int, record: RoundRecord) -> bool:
        assert record.round == following - 1
        self.asked.append(following)
        return following % self.every == 0

    def keep(self, state: ServerState, more: Mapping[str, Any]) -> None:
        self.during()
        self.kept[state.round] = filed(state.tree)
        self.more.append(more)

    def wait(self) -> None:
        self.written.wait(60)
