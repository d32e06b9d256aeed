"""A push and a pull over a line of 1 kB a second, each longer than every limit on silence.

    python benchmarks/slow_line.py --rate 1000 --seconds 75

Relays between real sockets pace both directions, with the payload beside gRPC and then as chunks. The
limits are those of a run: 10 s of silence at the server, 60 s at the worker, and gRPC's own keepalive.
Prints how long each transfer took, over how many connections, and how many bytes they had: each payload
once, if nothing was taken for dead. Connections for payloads that nobody uses for a minute are closed, and
at this pace that is all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from tests.wire.kit import Run, far  # noqa: E402

from varangian.aggregators import Mean  # noqa: E402
from varangian.protos.layout import Layout  # noqa: E402
from varangian.server.limits.limits import Limits  # noqa: E402
from varangian.worker.transport.client import Pulled  # noqa: E402

DAY = 86_400.0
ROUNDS = 2
T = TypeVar("T")


async def measured(rate: float, seconds: float, lane: bool) -> bool:
    """Whether everything went once, and all calls over one connection."""
    layout = Layout((("weight", (int(rate * seconds) // 4,)),))
    run = Run(ROUNDS, layout, f=0, deadline=DAY, limits=Limits(), rule=Mean(), names=("w00",))
    async with (
        run.placed() as place,
        far(place, rate, lane=() if lane else None) as lines,
        run.client(lines.address, "w00", idle=60.0) as client,
    ):
        await timed("join", client.join())
        for round in range(ROUNDS):
            pulled = await timed(f"pull of {4 * layout.numel} bytes", client.pull(round - 1))
            assert isinstance(pulled, Pulled)
            assert pulled.round == round
            vector = torch.rand(layout.numel)
            receipt = await timed(f"push of {4 * layout.numel} bytes", client.push(round, vector))
            assert receipt.counted, receipt
    relays = {"calls": lines.calls, "lane": lines.lane}
    for name, relay in relays.items():
        if relay is not None:
            moved = f"up {relay.up.moved}, down {relay.down.moved} bytes"
            print(f"{name}: connections {relay.connections}; {moved}", flush=True)
    carried = lines.lane or lines.calls
    once = (ROUNDS + 0.5) * 4 * layout.numel
    return lines.calls.connections == 1 and max(carried.up.moved, carried.down.moved) < once


async def timed(what: str, call: Awaitable[T]) -> T:
    began = time.monotonic()
    result = await call
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="bytes a second, each way")
    parser.add_argument("--seconds", type=float, default=75.0, help="how long a transfer should take")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return 0 if all(asyncio.run(measured(args.rate, args.seconds, lane)) for lane in (True, False)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
