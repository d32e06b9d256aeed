"""A slow line is no dead one: transfers that take longer than any silence is allowed to.

A kilobyte a second and a worker that bears 60 s of silence, both `FASTER` times as fast. At the server
silence may last a second and more, not a half: the machine pauses, too. What is sent ahead and the smallest
message stay as they are. `benchmarks/slow_line.py` takes the real time: each transfer lasts over a minute.
"""

import pytest
import torch
from tests.extent import patience
from tests.wire.kit import Run, far
from tests.wire.relay import NEAR

from varangian.aggregators import Mean
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.worker.transport.retry import Backoff

FASTER = 20
RATE = 1000 * FASTER
SILENCE_AT_WORKER = 60 / FASTER
SILENCE_AT_SERVER = min(patience(1.0), SILENCE_AT_WORKER)
LAYOUT = Layout((("weight", (int(1.25 * SILENCE_AT_WORKER * RATE) // 4,)),))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["chunks", "lane", "sealed"])
async def test_what_takes_longer_than_every_silence_arrives_at_the_first_try(way, request):
    path = request.getfixturevalue("certified") if way == "sealed" else None
    await arrives(lane=way != "chunks", path=path)


async def arrives(lane, path):
    proof = path and Bundle.load(path / "w00")
    secured = {"security": Security(path)} if path else {}
    limits = Limits(idle=SILENCE_AT_SERVER, grace=0.05)
    run = Run(2, LAYOUT, f=0, limits=limits, rule=Mean(), names=("w00",), **secured)
    impatient = {"idle": SILENCE_AT_WORKER, "backoff": Backoff(tries=1)}
    async with (
        run.placed() as place,
        far(place, RATE, lane=() if lane else None) as lines,
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
        assert way.moved >= LAYOUT.numel * 4
        assert way.moved / RATE > max(SILENCE_AT_SERVER, SILENCE_AT_WORKER)
    assert torch.equal(after.parameters, torch.full((LAYOUT.numel,), 0.75))
