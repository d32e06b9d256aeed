"""Lines that are slow, far, cut off, reset or silent, on both ports: none of them changes a bit.

A slow line is no dead one: transfers may take longer than any silence is allowed to. A kilobyte a second
and a worker that bears 60 s of silence, both so many times as fast; where the machine has paused for as
long as that, again, and slower. At the server silence may last a third of it. What is sent ahead and the
smallest message stay as they are. `benchmarks/slow_line.py` takes the real time: each transfer lasts over
a minute.
"""

import asyncio

import pytest
import torch
from tests.extent import patience
from tests.wire.kit import ALWAYS, LAYOUT, NAMES, Run, all_worked, far, gradient, until, worked
from tests.wire.relay import NEAR

from varangian.aggregators import Mean
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.retry import Backoff

FASTER = (20, 8, 3)
RATE = 1000
SILENCE = 60
SLOW = Layout((("weight", (int(1.25 * SILENCE * RATE) // 4,)),))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("way", ["chunks", "lane", "sealed"])
async def test_what_takes_longer_than_every_silence_arrives_at_the_first_try(way, request):
    path = request.getfixturevalue("certified") if way == "sealed" else None
    for faster in FASTER:
        try:
            await arrives(faster, lane=way != "chunks", path=path)
            break
        except (AssertionError, ClientError):
            # A machine that pauses is silent, too; a limit on duration would fail at every speed.
            if faster == FASTER[-1]:
                raise


async def arrives(faster, lane, path):
    proof = path and Bundle.load(path / "w00")
    secured = {"security": Security(path)} if path else {}
    rate, silence = RATE * faster, SILENCE / faster
    limits = Limits(idle=silence / 3, grace=0.05)
    run = Run(2, SLOW, f=0, limits=limits, rule=Mean(), names=("w00",), absent_after=ALWAYS, **secured)
    impatient = {"idle": silence, "backoff": Backoff(tries=1)}
    async with (
        run.placed() as place,
        far(place, rate, lane=() if lane else None) as lines,
        run.client(lines.address, "w00", proof, **impatient) as client,
        run.client(place.address, "w00", proof) as near,
    ):
        assert place.address.startswith(NEAR)
        await client.join()
        pulled = await client.pull(-1)
        assert (await client.push(0, pulled.parameters / 2)).counted
        near._identity = client._identity  # the same worker, past the slow line
        await near.join()
        after = await near.pull(0)
    assert lines.calls.connections == 1
    carried = lines.lane if lane else lines.calls
    assert carried.connections == 1
    for way in (carried.up, carried.down):
        assert way.moved >= SLOW.numel * 4
        assert way.moved / rate > silence
    assert torch.equal(after.parameters, torch.full((SLOW.numel,), 0.75))


SMALL = Layout((("weight", (1000,)),))
"""A vector that travels in one message with its manifest."""
CUT_OFF = NAMES[3:]
"""As good as half of the workers."""


async def calm(rounds, layout=LAYOUT):
    """The digest of a run on lines without faults."""
    run = Run(rounds, layout)
    async with run.served() as address:
        await all_worked(run, address)
    return run.learner.digest()


def whole(run):
    """Whether every round had the vectors of all workers."""
    return all(not record.missing and len(record.weights or ()) == len(NAMES) for record in run.records)


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize(
    "latency", [0.01, pytest.param(0.5, marks=[pytest.mark.slow, pytest.mark.exhaustive])]
)
async def test_half_a_second_of_latency_kills_nobody(latency):
    """One way, and up to half as much more by chance: nothing is sent twice, no line is dialled again."""
    run = Run(2, LAYOUT, quorum=len(NAMES), limits=Limits(grace=20.0))
    async with run.placed() as place, far(place, latency=latency, jitter=latency / 2) as lines:
        assert set(await all_worked(run, lines.address)) == {"all 2 rounds are done"}
    assert whole(run)
    assert run.learner.digest() == await calm(2, LAYOUT)
    assert [relay.connections for relay in lines.relays] == [len(NAMES)] * 2
    assert lines.lane.up.moved < 2 * len(NAMES) * (4 * LAYOUT.numel + 64)


async def test_half_of_the_workers_cut_off_and_back():
    """Below the quorum the round waits; nobody else makes it up, and no vector of the others is lost.

    They are cut off before either has pushed: one vector more would be a quorum, and the round could end.
    """
    rounds = 12
    # All of them: on a busy machine one that is back may look absent to the round that it came back for.
    run = Run(rounds, SMALL, quorum=len(NAMES))
    computing, cut = set(), asyncio.Event()

    async def compute(name, round, parameters):
        if name in CUT_OFF and round == 2:
            computing.add(name)
            await cut.wait()
        return await gradient(name, round, parameters)

    async with run.placed() as place, far(place) as lines:
        addresses = {name: lines.address if name in CUT_OFF else place.address for name in NAMES}
        working = asyncio.create_task(all_worked(run, addresses, compute))
        await until(lambda: computing == {*CUT_OFF})
        lines.hole()
        cut.set()
        await until(lambda: lines.calls.up.waiting == len(CUT_OFF))
        await until(lambda: run.coordinator.status().missing == CUT_OFF)
        await until(lambda: run.coordinator.status().counted == NAMES[:3])
        assert "3 of 5 workers answered" in run.coordinator.status().sentence
        assert len(run.records) == 2
        lines.heal()
        assert set(await working) == {f"all {rounds} rounds are done"}
    assert whole(run)
    assert run.learner.digest() == await calm(rounds, SMALL)
    assert run.problems() == []


@pytest.mark.exhaustive
async def test_with_a_quorum_the_others_go_on_and_those_who_were_cut_off_come_back():
    run = Run(10_000, SMALL, quorum=3, deadline=patience(0.2), rule=Mean(), f=0)
    async with run.placed() as place, far(place) as lines:
        addresses = {name: lines.address if name in CUT_OFF else place.address for name in NAMES}
        working = asyncio.create_task(all_worked(run, addresses))
        await until(lambda: run.records and whole(run))
        lines.hole()
        await until(lambda: run.records[-1].missing == CUT_OFF)
        lines.heal()
        await until(lambda: run.records[-1].missing == ())
        run.stop.set()
        await working
    assert [record.round for record in run.records] == [*range(len(run.records))], "one model, step by step"
    assert all(record.dropped == {} for record in run.records)
    assert run.problems() == []


@pytest.mark.exhaustive
async def test_a_black_hole_on_both_ports():
    """In the middle of a push; the worker tries to connect anew in vain until it is over."""
    run = Run(2, LAYOUT, quorum=len(NAMES), limits=Limits(idle=patience(0.4), patience=0.1, grace=20.0))
    async with run.placed() as place, far(place) as lines:
        near = all_worked(run, dict.fromkeys(NAMES[1:], place.address))
        far_away = worked(run, lines.address, "w00", idle=patience(0.3))
        working = asyncio.gather(far_away, near)
        await until(lambda: lines.lane.up.moved > LAYOUT.numel)
        lines.hole()
        before = [relay.connections for relay in lines.relays]
        await until(lambda: [relay.connections for relay in lines.relays] != before)
        lines.heal()
        await working
    assert whole(run)
    assert run.learner.digest() == await calm(2, LAYOUT)
    assert run.problems() == []


@pytest.mark.exhaustive
async def test_a_reset_of_both_ports_in_a_push_costs_a_repetition():
    run = Run(2, LAYOUT, quorum=len(NAMES))
    async with run.placed() as place, far(place) as lines:
        near = all_worked(run, dict.fromkeys(NAMES[1:], place.address))
        working = asyncio.gather(worked(run, lines.address, "w00"), near)
        await until(lambda: lines.lane.up.moved > LAYOUT.numel)
        await lines.reset()
        await working
    assert lines.lane.connections + lines.calls.connections > 2
    assert whole(run)
    assert run.learner.digest() == await calm(2, LAYOUT)


@pytest.mark.exhaustive
async def test_a_router_that_forgets_silent_connections_costs_no_round():
    """Those who wait for the slowest worker are cut off again and again meanwhile."""
    run = Run(2, LAYOUT, quorum=len(NAMES))
    async with run.placed() as place, far(place, idle=patience(0.3)) as lines:

        async def slow(name, round, parameters):
            if name == "w04":
                await until(lambda: lines.calls.connections > (round + 2) * len(NAMES))
            return await gradient(name, round, parameters)

        addresses = dict.fromkeys(NAMES, lines.address) | {"w04": place.address}
        await all_worked(run, addresses, slow)
    assert whole(run)
    assert run.learner.digest() == await calm(2, LAYOUT)
