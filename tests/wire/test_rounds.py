"""Server and workers as they run, over loopback: whole rounds, and what a bad line does to them.

Each test runs with payloads beside gRPC and with chunks alone.
"""

import asyncio

import pytest
import torch
from tests.ports import free_port
from tests.wire.kit import LAYOUT, NAMES, Run, all_worked, far
from tests.wire.relay import Fate, Relay, Way

from varangian.aggregators import Bucketing, Median
from varangian.server.limits.limits import Limits
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.retry import Backoff

UNHEARD = Limits(grace=0.1)
"""For who is not there any more at the end of the run."""


@pytest.fixture(autouse=True, params=[0, None], ids=["lane", "chunks"])
def _ways(request, monkeypatch):
    monkeypatch.setattr(Run, "data_port", request.param)


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


async def test_a_worker_may_come_before_its_server():
    early, port = Run(rounds=1), free_port()
    workers = asyncio.create_task(all_worked(early, f"127.0.0.1:{port}"))
    await asyncio.sleep(0.05)
    async with early.served(port):
        assert set(await workers) == {"all 1 rounds are done"}


async def test_a_worker_whose_server_has_gone_says_so():
    run = Run(limits=UNHEARD)
    async with run.served() as address, run.client(address, "w00", backoff=Backoff(2, 0.01)) as client:
        await client.join()
        run.stop.set()
        await run.ended
        with pytest.raises(ClientError, match=r"Worker w00 could not push round 0 at 127.* after 2 tries"):
            await client.push(0, torch.zeros(LAYOUT.numel))


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


async def test_nothing_that_is_sent_holds_the_seed_of_the_server(monkeypatch):
    """It decides the buckets, and a worker that knew it would know them."""
    seed, sent = 0x1D3A5C779E2B4F61, bytearray()
    write = Way.write

    async def watched(way, writer, data):
        sent.extend(data)
        await write(way, writer, data)

    monkeypatch.setattr(Way, "write", watched)
    run = Run(2, f=0, rule=Median(), mix=(Bucketing(s=2),), seed=seed)
    async with run.placed() as place, far(place) as lines:
        await all_worked(run, lines.address)
    assert len(sent) > 2 * 2 * len(NAMES) * LAYOUT.numel * 4, "pulls and pushes"
    forms = (seed.to_bytes(8, "little"), seed.to_bytes(8, "big"), str(seed).encode(), b"%x" % seed)
    assert not [form for form in (*forms, b"%X" % seed, varint(seed)) if form in sent]


def varint(number):
    """As protobuf writes it."""
    groups = [number >> shift & 0x7F for shift in range(0, number.bit_length(), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
