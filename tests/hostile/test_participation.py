"""A worker that keeps to no rule of an invitation: whatever it does, the others go on, and nothing is left.

Each way to take part, over loopback: three honest workers, and one that is declared with f = 1.
"""

import asyncio
import contextlib
import json

import pytest
import torch
from tests.extent import patience
from tests.hostile.crew import Crew, Renegade, code
from tests.hostile.siege import Siege, settled

from varangian.protos.payloads.chunks import encode_chunk
from varangian.worker.transport.retry import Backoff

pytestmark = pytest.mark.slow

NUMEL = 200_000
HONEST, TRAITOR = ("w00", "w01", "w02"), "w03"
DEADLINE = min(patience(0.4), 2.0)
SLACK = 4
"""Files that gRPC may keep for later."""
GROWTH = 48 << 20
SHARED = ["aggregator=median", "optimizer.lr=0.1", f"server.deadline={DEADLINE}"]
WAYS = {
    "async": ["participation={async: {tau: 3}}", "server.quorum=3"],
    "fedlaavg": ["participation={fedlaavg: {participants: 2, gather: 0.1}}"],
    "asap": ["participation={asap: {graph: complete}}", "server.quorum=3"],
}


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("async", "asap")), "fedlaavg"],
)
def besieged(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("siege") / "server.log"
    settings = json.dumps([*SHARED, *WAYS[request.param]])
    siege = Siege(log, NUMEL, workers=4, f=1, settings=settings, silence=0.2, patience=0.3)
    worker_compute = Crew(siege, HONEST)
    try:
        yield request.param, siege, worker_compute
        said = log.read_text()
        assert "Traceback" not in said, said[-3000:]
    finally:
        worker_compute.close()
        siege.close()
    assert siege.process.returncode == 0, log.read_text()[-3000:]


@contextlib.asynccontextmanager
async def renegade(siege, name=TRAITOR):
    client = siege.client(name, Renegade, backoff=Backoff(tries=50, first=0.05, most=0.2))
    client.address = siege.address
    async with client:
        await client.join()
        yield client


async def still(siege, crew):
    """Until the others have paused, and the round that is open stays so."""
    while crew.pushing or not await asyncio.to_thread(siege.still):
        await asyncio.sleep(0.02)


def told(records):
    """What the traitor was dropped for."""
    return {record["dropped"][TRAITOR] for record in records if TRAITOR in record["dropped"]}


def test_who_was_not_invited_does_not_count(besieged):
    _, siege, worker_compute = besieged

    async def push_all_the_same():
        async with renegade(siege) as traitor:
            with worker_compute.paused():
                await still(siege, worker_compute)
                now, vector = await traitor.join(), torch.full((NUMEL,), 1e6)
                receipts = [await traitor.push(round, vector) for round in (now, now + 1, max(0, now - 9))]
            return now, [(receipt.counted, receipt.code) for receipt in receipts]

    worker_compute.goes_on()
    now, found = asyncio.run(push_all_the_same())
    assert now >= 5
    assert found == [(False, "NOT_INVITED"), (False, "FUTURE"), (False, "TOO_OLD")]
    assert not told(worker_compute.goes_on(3))


def test_the_first_of_two_vectors_counts_and_spends_nothing(besieged):
    """The second is even none: but that is not looked at any more."""
    way, siege, worker_compute = besieged
    # Where the round waits for others too, there is no model for who has already pushed.
    rounds = 3 if way == "fedlaavg" else 1
    ones, nan = torch.ones(NUMEL), torch.full((NUMEL,), torch.nan)

    async def push_twice(codes):
        async with renegade(siege) as traitor:
            with worker_compute.paused():
                await still(siege, worker_compute)
                for _ in range(rounds):
                    round = (await traitor.pull(-1)).round
                    receipts = [await traitor.push(round, vector) for vector in (ones, ones, nan, ones)]
                    assert [receipt.counted for receipt in receipts[:3]] == [True, True, False]
                    codes.append(tuple(receipt.code for receipt in receipts[2:]))
        return codes

    codes = asyncio.run(push_twice([]))
    assert set(codes) == {("COUNTED", "")}
    assert told(worker_compute.goes_on(3)) == set()


def test_what_is_no_number_proves_a_fault_and_costs_nobody_else_anything(besieged):
    _, siege, worker_compute = besieged
    nan = torch.full((NUMEL,), torch.nan)

    async def push_nothing():
        codes = set()
        async with renegade(siege) as traitor:
            for _ in range(5):
                round = (await traitor.pull(-1)).round
                codes.add((await traitor.push(round, nan)).code)
        return codes

    before = len(siege.rounds)
    assert "UNSOUND" in asyncio.run(push_nothing())
    worker_compute.goes_on(2)
    found = siege.rounds[before:]
    assert told(found) == {"not finite"}
    assert not [record for record in found if record["skipped"]]


def test_silence_and_half_vectors_cost_a_deadline_and_no_more(besieged):
    """Invited again and again: it takes every model that it can get, and never answers, or stops midway."""
    _, siege, worker_compute = besieged

    async def stall():
        async with renegade(siege) as traitor:
            calls = []
            for half in (False, True, True, False, True):
                round = (await traitor.pull(-1)).round
                if half:
                    calls.append(await traitor.half(round))
                await asyncio.sleep(DEADLINE / 2)
            return calls

    before = len(siege.rounds)
    calls = asyncio.run(stall())
    assert any(ready for _, ready in calls), "something was uploaded"
    worker_compute.goes_on(3)
    found = siege.rounds[before:]
    assert not told(found)
    assert not [record for record in found if record["skipped"]]


def test_who_leaves_after_its_vector_was_taken_is_counted_once(besieged):
    way, siege, worker_compute = besieged

    async def push_and_leave():
        async with renegade(siege) as traitor:
            with worker_compute.paused():
                round = (await traitor.pull(-1)).round
                assert (await traitor.push(round, torch.ones(NUMEL))).counted

    before = len(siege.rounds)
    asyncio.run(push_and_leave())
    worker_compute.goes_on(4)
    used = [record for record in siege.rounds[before:] if record["ages"].get(TRAITOR) is not None]
    if way == "fedlaavg":
        assert used[0]["ages"][TRAITOR] == 0
        assert [record["ages"][TRAITOR] for record in used] == [*range(len(used))]
    else:
        assert len(used) == 1


def test_pulls_that_are_dropped_or_parked_leave_nothing_behind(besieged):
    _, siege, worker_compute = besieged

    async def ask():
        async with renegade(siege) as traitor:
            for i in range(120):
                call = traitor.asks(after=-1 if i % 2 else 10**9)
                if i % 3:
                    await asyncio.sleep(0.01)
                call.cancel()
            parked = [traitor.asks(after=2**62) for _ in range(100)]
            codes = await asyncio.gather(*(code(call) for call in parked))
            for i in range(3):
                traitor.another()
                await asyncio.sleep(0.3)
                if i < 2:
                    await traitor.join()
                traitor.asks().cancel()
            return codes

    worker_compute.goes_on(2)
    files, threads, resident = siege.files, siege.threads, siege.resident
    codes = asyncio.run(ask())
    assert set(codes) == {"STREAMS", ""}, "two of them wait, and the next takes the place of one"
    worker_compute.goes_on(5)
    assert siege.resident - resident < GROWTH
    assert settled(lambda: siege.files, lambda count: count <= files + SLACK) <= files + SLACK
    assert settled(lambda: siege.threads, lambda count: count <= threads + SLACK) <= threads + SLACK


@pytest.mark.exhaustive  # more uploads than turns, in one process: server/transport/test_service.py
def test_uploads_that_never_end_take_no_place_from_others(tmp_path):
    """f are invited, and bring a number now and then: there is room for f more than for others."""
    traitors = ("w04", "w05", "w06")
    way = ["participation={fedlaavg: {participants: 1, gather: 0.1}}", *SHARED]
    siege = Siege(tmp_path / "log", NUMEL, workers=7, f=3, settings=json.dumps(way), silence=0.2)
    worker_compute = Crew(siege, ("w00", "w01", "w02", "w03"))

    async def trickle():
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(renegade(siege, name)) for name in traitors]
            with worker_compute.paused():
                await still(siege, worker_compute)
                models = await asyncio.gather(*(client.pull(-1) for client in clients))
                assert len({model.round for model in models}) == 1
                calls = [
                    await client.half(model.round) for client, model in zip(clients, models, strict=True)
                ]
                assert all(ready for _, ready in calls)
            going = asyncio.create_task(asyncio.to_thread(worker_compute.goes_on, 1))
            for at in range(2 * NUMEL, 4 * NUMEL, 4):
                over = going.done()
                for call, _ in calls:
                    call.write(encode_chunk(at, bytes(4)))
                if over:
                    break
                await asyncio.wait({going}, timeout=0.3)
            await going
            return [await code(call) for call, _ in calls]

    try:
        worker_compute.goes_on(2)
        assert set(asyncio.run(trickle())) == {"TOO_OLD"}
    finally:
        worker_compute.close()
        siege.close()
