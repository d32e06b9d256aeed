"""A slow line is no dead one: transfers that take longer than any silence is allowed to.

A kilobyte a second and a worker that bears 60 s of silence, both `FASTER` times as fast. At the server
silence may last a second, not a half: the machine pauses, too. What is sent ahead and the smallest message
stay as they are. `benchmarks/slow_line.py` takes the real time: there each transfer lasts over a minute.
"""

import asyncio
import contextlib

import pytest
import torch
from tests.wire.relay import Relay

from varangian.aggregators import Aggregator, Mean
from varangian.protos.layout import Layout
from varangian.server.driver import Driver
from varangian.server.events import RoundPolicy
from varangian.server.learner import Learner
from varangian.server.optimizer import Sgd
from varangian.server.roster import Roster
from varangian.server.round import RoundMachine
from varangian.server.service import serve
from varangian.server.streams import Limits
from varangian.worker.backoff import Backoff
from varangian.worker.client import Client, Pulled

FASTER = 20
RATE = 1000 * FASTER
SILENCE_AT_SERVER, SILENCE_AT_WORKER = 1.0, 60 / FASTER
LAYOUT = Layout((("weight", (int(1.25 * SILENCE_AT_WORKER * RATE) // 4,)),))


@contextlib.asynccontextmanager
async def served(limits):
    policy = RoundPolicy(("w00",), 2, quorum=1, deadline=600.0, shortfall="wait", f=0)
    learner = Learner(torch.ones(LAYOUT.numel), Aggregator(Mean()), Sgd(lr=0.5), rounds=2, seed=1)
    driver = Driver(
        RoundMachine(policy),
        learner,
        evaluate=lambda _: (0.0, 0.0),
        evaluate_every=9,
        observe=lambda _: None,
    )
    roster, stop = Roster(["w00"], b"0123456789abcdef"), asyncio.Event()
    ready = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(
        serve(
            driver,
            roster,
            LAYOUT,
            run_id="slow",
            host="127.0.0.1",
            port=0,
            ready=ready.set_result,
            stop=stop,
            limits=limits,
        )
    )
    await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield ready.result(), roster
    finally:
        stop.set()
        await ended


async def transferred(rate):
    """A pull and a push over such a line; how both ends of it fared, and what was pulled next."""
    limits = Limits(idle=SILENCE_AT_SERVER, grace=0.05)
    async with served(limits) as (address, roster):
        relay = Relay(address, rate)
        async with (
            relay.laid() as slow,
            Client(
                slow,
                "w00",
                roster.token("w00"),
                LAYOUT,
                idle=SILENCE_AT_WORKER,
                backoff=Backoff(tries=1),
            ) as client,
            Client(address, "w00", roster.token("w00"), LAYOUT) as near,
        ):
            await client.join()
            pulled = await client.pull(-1)
            assert isinstance(pulled, Pulled)
            receipt = await client.push(0, pulled.parameters / 2)
            near._identity = client._identity  # the same worker, past the slow line
            await near.join()
            return relay, receipt, await near.pull(0)


@pytest.mark.slow
def test_what_takes_longer_than_every_silence_arrives_at_the_first_try():
    relay, receipt, after = asyncio.run(asyncio.wait_for(transferred(RATE), 60))
    assert receipt.counted
    assert relay.connections == 1
    for way in (relay.up, relay.down):
        assert way.moved > LAYOUT.numel * 4
        assert way.moved / RATE > max(SILENCE_AT_SERVER, SILENCE_AT_WORKER)
    assert torch.equal(after.parameters, torch.full((LAYOUT.numel,), 0.75))
