"""Workers that come and go, over loopback: each way to take part, and NOTIFY-ACK on the wire.

Each test runs with payloads beside gRPC and with chunks alone.
"""

import asyncio

import grpc
import pytest
import torch
from tests.wire import kit

from varangian.aggregators import Mean, Median
from varangian.aggregators.graphs import Exponential
from varangian.protos.layout import Layout
from varangian.server.limits.limits import Limits
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.staleness import Polynomial
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.source import Pushed, WeightedByAge
from varangian.server.transport.service import Service
from varangian.worker.loop import work

NAMES = tuple(f"w{i:02d}" for i in range(5))
LAYOUT = Layout((("weight", (20, 10)), ("bias", (3,))))
D = LAYOUT.numel


class Run(kit.Run):
    """One server of invited workers, and what came of it."""

    def __init__(self, choice, row_source=None, rule=None, names=NAMES, f=0, grace=20.0, **policy):
        agreed = {"rounds": 4, "quorum": 1, "deadline": 60.0, "shortfall": "wait", "f": f} | policy
        self.machine = Machine(RunPolicy(names, **agreed, selection=choice))
        limits = Limits(idle=20.0, patience=0.2, grace=grace)
        given = {"limits": limits, "names": names, "machine": self.machine, "row_source": row_source}
        super().__init__(agreed["rounds"], LAYOUT, f, rule=rule or Mean(), lr=1.0, **given)

    async def worked(self, address, name, compute, turn=lambda round: round):
        async with self.client(address, name) as client:
            return await work(client, lambda *given: compute(name, *given), next_round=turn)

    async def with_all(self, address, compute, turns=None):
        turns = turns or {}
        each = (self.worked(address, name, compute, **turns.get(name, {})) for name in self.names)
        return await asyncio.gather(*each)


@pytest.fixture(autouse=True, params=[0, None], ids=["lane", "chunks"])
def _ways(request, monkeypatch):
    monkeypatch.setattr(Run, "data_port", request.param)


async def towards_zero(name, round, parameters):
    return parameters / 2


async def test_fedlaavg_with_a_byzantine_worker_and_workers_that_take_turns():
    async def compute(name, round, parameters):
        return torch.full((D,), 1e6) if name == "w04" else parameters / 2

    run = Run(LongestAbsent(3, gather=30.0), LatestVectors.of(NAMES, D, 3), Median(), f=1)
    even = {"turn": lambda round: round + round % 2}
    odd = {"turn": lambda round: round + 1 - round % 2}
    turns = {"w00": even, "w01": even, "w02": odd, "w03": odd, "w04": even}
    async with run.served() as address:
        assert set(await run.with_all(address, compute, turns)) == {"all 4 rounds are done"}
    first = {"w00": 0, "w01": 0, "w04": 0}
    evens, odds = first | {"w02": 1, "w03": 1}, {"w00": 1, "w01": 1, "w02": 0, "w03": 0, "w04": 1}
    assert [record.ages for record in run.records] == [first, odds, evens, odds]
    # Of w00 and w01, w02 and w03, which send half of what they are given, and w04.
    rows, x = [0.0, 0.0, 1e6], 1.0
    for sent in range(4):
        rows[sent % 2] = x / 2
        x -= sorted((*rows[:2], *rows))[2]
    assert run.learner.parameters.tolist() == pytest.approx([x] * D)


async def test_async_does_not_wait_for_a_straggler_and_takes_its_vector_when_it_comes():
    late = asyncio.Event()

    async def compute(name, round, parameters):
        if name == "w00" and round == 0:
            await late.wait()
        if round >= 3:
            late.set()
        return parameters / 2

    run = Run(BufferSelection(4, tau=40, staleness=Polynomial()), WeightedByAge(), rounds=30)
    async with run.served() as address:
        await run.with_all(address, compute)
    stale = [record.ages["w00"] for record in run.records if "w00" in record.ages]
    assert stale[0] >= 3
    assert all(len(record.ages) >= 4 for record in run.records)


async def test_asap_goes_on_when_a_worker_dies():
    async def compute(name, round, parameters):
        if name == "w03" and round >= 2:
            raise RuntimeError("dies here")
        return parameters / 2

    names = tuple(f"w{i:02d}" for i in range(8))
    run = Run(NeighbourhoodSelection(Exponential()), Pushed(), names=names, rounds=6, deadline=60.0)
    async with run.served() as address:
        workers = [run.worked(address, name, compute) for name in names]
        ended = await asyncio.gather(*workers, return_exceptions=True)
    assert [str(end) for end in ended].count("all 6 rounds are done") == 7
    groups = [run.machine.policy.selection.members(names, round) for round in range(6)]
    assert [tuple(record.ages) for record in run.records[:4]] == groups[:4]
    assert "w03" in groups[3], "its first vector waits for its turn"
    for record, group in zip(run.records[4:], groups[4:], strict=True):
        assert record.missing == ("w03",)
        assert {*record.ages, "w03"} == set(group)


@pytest.mark.parametrize("used", [False, True])
async def test_a_push_whose_reply_was_lost_counts_once(monkeypatch, used):
    """The client says it again, while its vector is held, and after it was used."""
    lost = []
    counted = Service.push

    async def forgetful(self, request, context):
        reply = await counted(self, request, context)
        if not lost:
            lost.append(reply)
            await gate.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        return reply

    monkeypatch.setattr(Service, "push", forgetful)
    gate = asyncio.Event()
    run = Run(LongestAbsent(2, gather=30.0), names=NAMES[:2], rounds=2, grace=0.1)
    async with (
        run.served() as address,
        run.client(address, "w00") as a,
        run.client(address, "w01") as b,
    ):
        for client in (a, b):
            await client.join()
        await asyncio.gather(a.pull(-1), b.pull(-1))
        pushing = asyncio.create_task(a.push(0, torch.full((D,), 3.0)))
        while not lost:
            await asyncio.sleep(0.01)
        if not used:
            gate.set()
            assert (await pushing).counted
        assert (await b.push(0, torch.ones(D))).counted
        while run.coordinator.round == 0:
            await asyncio.sleep(0.01)
        gate.set()
        assert (await pushing).counted
        # The answer to the next pull is the acknowledgement: the vector was used.
        models = await asyncio.gather(a.pull(0), b.pull(0))
        assert [model.round for model in models] == [1, 1]
        assert models[0].parameters[0].item() == 1 - (3 + 1) / 2
    assert len(run.records) == 1


async def test_a_worker_that_is_started_again_is_given_its_place_back():
    run = Run(LongestAbsent(2, gather=30.0), names=NAMES[:2], rounds=2, grace=0.1)
    async with run.served() as address, run.client(address, "w01") as other:
        await other.join()
        waiting = asyncio.create_task(other.pull(-1))
        async with run.client(address, "w00") as dying:
            await dying.join()
            assert (await dying.pull(-1)).round == 0
        async with run.client(address, "w00") as again:
            await again.join()
            assert (await again.pull(-1)).round == 0, "the same model once more"
            assert (await again.push(0, torch.ones(D))).counted
            await waiting
            assert (await other.push(0, torch.ones(D))).counted
            assert (await asyncio.gather(again.pull(-1), other.pull(0)))[0].round == 1
    assert (run.records[0].missing, run.records[0].ages) == ((), {"w00": 0, "w01": 0})
