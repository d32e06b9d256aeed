"""A push and a pull over a line of 1 kB a second, each longer than every limit on silence.

    python benchmarks/slow_line.py --rate 1000 --seconds 75

A relay between real sockets paces both directions. The limits are those of a run: 10 s of silence at the
server, 60 s at the worker, and gRPC's own keepalive. Prints how long each transfer took, and over how many
connections: one, if nothing was taken for dead.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from tests.wire.relay import Relay  # noqa: E402

from varangian.aggregators import Aggregator, Mean  # noqa: E402
from varangian.protos.layout import Layout  # noqa: E402
from varangian.server.driver import Driver  # noqa: E402
from varangian.server.events import RoundPolicy  # noqa: E402
from varangian.server.learner import Learner  # noqa: E402
from varangian.server.optimizer import Sgd  # noqa: E402
from varangian.server.roster import Roster  # noqa: E402
from varangian.server.round import RoundMachine  # noqa: E402
from varangian.server.service import serve  # noqa: E402
from varangian.worker.client import Client, Pulled  # noqa: E402

DAY = 86_400.0


async def measured(rate: float, seconds: float) -> bool:
    """Whether everything went over one connection."""
    layout = Layout((("weight", (int(rate * seconds) // 4,)),))
    roster = Roster(["w00"], b"this guards nothing but a measurement")
    learner = Learner(torch.zeros(layout.numel), Aggregator(Mean()), Sgd(lr=1.0), rounds=2, seed=1)
    policy = RoundPolicy(("w00",), 2, quorum=1, deadline=DAY, shortfall="wait", f=0)
    driver = Driver(
        RoundMachine(policy),
        learner,
        evaluate=lambda _: (0.0, 0.0),
        evaluate_every=9,
        observe=lambda _: None,
    )
    ready, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
    served = asyncio.create_task(
        serve(
            driver,
            roster,
            layout,
            run_id="slow",
            host="127.0.0.1",
            port=0,
            ready=ready.set_result,
            stop=stop,
        )
    )
    relay = Relay(await ready, rate)
    async with relay.laid() as address, Client(address, "w00", roster.token("w00"), layout) as client:
        began = time.monotonic()
        await client.join()
        print(f"join: {time.monotonic() - began:.1f} s")
        for round in range(2):
            began = time.monotonic()
            pulled = await client.pull(round - 1)
            print(f"pull of {4 * layout.numel} bytes: {time.monotonic() - began:.1f} s", flush=True)
            assert isinstance(pulled, Pulled)
            assert pulled.round == round
            began = time.monotonic()
            receipt = await client.push(round, torch.rand(layout.numel))
            print(f"push of {4 * layout.numel} bytes: {time.monotonic() - began:.1f} s", flush=True)
            assert receipt.counted, receipt
    stop.set()
    await served
    print(f"connections: {relay.connections}; up {relay.up.moved}, down {relay.down.moved} bytes")
    return relay.connections == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="bytes a second, each way")
    parser.add_argument("--seconds", type=float, default=75.0, help="how long a transfer should take")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return 0 if asyncio.run(measured(args.rate, args.seconds)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
