"""Server and workers as they run, over loopback: whole rounds, and what a bad line does to them.

Each test runs with payloads beside gRPC and with chunks alone.
"""

import asyncio

import pytest
import torch
from tests.scenarios import scenario
from tests.wire.kit import LAYOUT, NAMES, Run, all_worked, gradient, worked
from tests.wire.relay import Fate, Relay

from varangian.protos.layout import Layout
from varangian.server.limits.quotas import Limits
from varangian.worker.transport.client import Client, ClientError
from varangian.worker.transport.retry import Backoff

UNHEARD = Limits(grace=0.1)
"""For who is not there any more at the end of the run."""


@pytest.fixture(autouse=True, params=[0, None], ids=["lane", "chunks"])
def _ways(request, monkeypatch):
    monkeypatch.setattr(Run, "data_port", request.param)


async def in_turn(run, address, delays):
    """Each worker comes so much later."""

    async def one(name, delay):
        await asyncio.sleep(delay)
        return await worked(run, address, name)

    return await asyncio.gather(*(one(name, delay) for name, delay in zip(run.names, delays, strict=True)))


@scenario
async def test_a_run_from_join_to_the_end():
    torch.set_num_threads(1)
    run = Run()
    async with run.served() as address:
        assert set(await all_worked(run, address)) == {"all 3 rounds are done"}
    assert [record.round for record in run.records] == [0, 1, 2]
    assert all(record.missing == () and record.dropped == {} for record in run.records)
    # Krum takes a row in the middle, always the same one here: x <- x - (x / 2 + (i + round) / 8) / 2.
    (chosen,) = {max(record.weights, key=record.weights.get) for record in run.records}
    x = 1.0
    for round in range(3):
        x -= (x / 2 + (NAMES.index(chosen) + round) / 8) / 2
    assert torch.equal(run.learner.parameters, torch.full((LAYOUT.numel,), x))


@scenario
async def test_who_comes_first_changes_no_bit():
    digests = set()
    for delays in (
        (0.0, 0.02, 0.04, 0.06, 0.08),
        (0.08, 0.06, 0.04, 0.02, 0.0),
        (0.04, 0.0, 0.08, 0.02, 0.06),
    ):
        run = Run(rounds=2)
        async with run.served() as address:
            await in_turn(run, address, delays)
        digests.add(run.learner.digest())
    assert len(digests) == 1


@scenario
async def test_a_worker_that_sends_nan_is_dropped_every_round_and_stops_nobody():
    async def compute(name, round, parameters):
        honest = await gradient(name, round, parameters)
        return honest * float("nan") if name == "w04" else honest

    run = Run()
    async with run.served() as address:
        assert set(await all_worked(run, address, compute)) == {"all 3 rounds are done"}
    assert [set(record.dropped) for record in run.records] == [{"w04"}] * 3
    assert torch.isfinite(run.learner.parameters).all()


@scenario
async def test_a_worker_that_never_comes_costs_the_deadline_and_no_more():
    run = Run(rounds=2, deadline=0.2)
    async with run.served() as address:
        await all_worked(run, dict.fromkeys(NAMES[:4], address))
    assert [record.missing for record in run.records] == [("w04",)] * 2


@scenario
async def test_a_worker_may_come_before_its_server():
    run = Run(rounds=1)
    async with run.served() as address:
        port = int(address.rpartition(":")[2])
    early = Run(rounds=1)
    workers = asyncio.create_task(all_worked(early, f"127.0.0.1:{port}"))
    await asyncio.sleep(0.05)
    async with early.served(port):
        assert set(await workers) == {"all 1 rounds are done"}


@scenario
async def test_a_worker_whose_server_has_gone_says_so():
    run = Run(limits=UNHEARD)
    async with run.served() as address, run.client(address, "w00", backoff=Backoff(2, 0.01)) as client:
        await client.join()
        run.stop.set()
        await run.ended
        with pytest.raises(ClientError, match=r"Worker w00 could not push round 0 at 127.* after 2 tries"):
            await client.push(0, torch.zeros(LAYOUT.numel))


@scenario
async def test_a_worker_of_another_model_hears_which_parameter_differs():
    run = Run()
    other = Layout((("weight", (500, 1000)), ("bias", (4,))))
    async with run.served() as address, Client(address, "w00", run.sessions.token("w00"), other) as client:
        with pytest.raises(
            ClientError, match=r"should be '3 bias', its shape and its name\. Found '4 bias'"
        ):
            await client.join()


@scenario
async def test_a_restarted_worker_takes_its_name_over_once_the_old_one_is_silent():
    run = Run(limits=UNHEARD)
    async with (
        run.served() as address,
        run.client(address, "w00") as old,
        run.client(address, "w00") as new,
    ):
        await old.join()
        await new.join()
        with pytest.raises(ClientError, match="Another process speaks for w00 now"):
            await old.pull(-1)


@scenario
async def test_a_line_that_breaks_in_the_middle_of_a_push_costs_a_repetition(monkeypatch):
    monkeypatch.setattr(Run, "data_port", None)
    # No round without all: on a busy machine a worker may look absent before it is back.
    run = Run(rounds=1, quorum=len(NAMES))
    async with run.served() as address:
        relay = Relay(address, fates=[Fate(up=size) for size in (300_000, 1_200_000, LAYOUT.numel * 4)])
        async with relay.laid() as broken:
            addresses = dict.fromkeys(NAMES, address) | {"w00": broken}
            await all_worked(run, addresses, backoff=Backoff(40, 0.02, 0.1))
    assert relay.connections >= 4
    (record,) = run.records
    assert (record.missing, record.dropped) == ((), {})
    assert len(record.weights) == 5


@scenario
async def test_workers_share_the_seats():
    layout = Layout((("weight", (2, 1024, 1024)),))
    run = Run(rounds=1, layout=layout, limits=Limits(receiving=1, turn=0.005, grace=20.0))
    async with run.served() as address:
        await all_worked(run, address)
    assert run.records[0].missing == ()
