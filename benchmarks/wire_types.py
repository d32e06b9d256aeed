"""Rounds a second and bytes of a round with each type of numbers on the wire, over a line with a pace.

    python benchmarks/wire_types.py --up 2.5e6 --down 2.5e6
    python benchmarks/wire_types.py --up 2.5e6 --down 12.5e6 --json FILE

Workers pull, compute nothing, and push, all over one line to the server: relays between real sockets pace
each direction. Types take turns, so that what else the machine does meets all of them. Pulls are float32 in
any case. The error is that of the update against the mean of the vectors as they were, relative to its
length: of one round, and of the mean of all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from tests.wire.kit import NAMES, Run, far  # noqa: E402
from tests.wire.relay import Way  # noqa: E402

from varangian.aggregators import Mean  # noqa: E402
from varangian.protos.layout import Layout  # noqa: E402
from varangian.protos.payloads.encoding import WIRE, Dtype  # noqa: E402
from varangian.server.limits.limits import Limits  # noqa: E402
from varangian.worker.transport.client import Client, Finished  # noqa: E402

DAY = 86_400.0


@dataclass
class Found:
    """What was measured with one type."""

    seconds: list[float] = field(default_factory=list[float])
    """Of each round."""
    pushed: float = 0.0
    """MB of a round to the server for each worker, with all that goes with a vector."""
    pulled: float = 0.0
    error: float = 0.0
    """Of the update of a round."""
    left: float = 0.0
    """Of the mean of all updates."""


def vectors(numel: int, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Vectors of workers, with layers of which one is a thousand times as large as another."""
    source = torch.Generator().manual_seed(1)
    scales = 10.0 ** (torch.arange(numel) * 8 // numel % 4 - 3)
    return {name: torch.randn(numel, generator=source) * scales for name in names}


async def measured(args: argparse.Namespace, dtype: Dtype) -> Found:
    """One run."""
    names, rounds = NAMES[: args.workers], args.rounds
    layout, sent = Layout((("weight", (args.numel,)),)), vectors(args.numel, names)
    options = {"f": 0, "deadline": DAY, "limits": Limits(), "rule": Mean(), "lr": 1.0, "dtype": dtype}
    run = Run(rounds, layout, names=names, **options)
    found, ends = Found(), list[float]()
    models = [run.learner.parameters.double()]

    async def works(client: Client) -> None:
        await client.join()
        for round in range(rounds):
            pulled = await client.pull(round - 1)
            assert not isinstance(pulled, Finished)
            if round == 1 and client.name == names[0]:
                models.append(pulled.parameters.double())
            receipt = await client.push(round, sent[client.name])
            assert receipt.counted, receipt
            if client.name == names[0]:
                ends.append(time.monotonic())
        assert isinstance(await client.pull(rounds - 1), Finished)

    async with run.placed() as place, far(place, args.up, lane=()) as lines:
        for relay in lines.relays:
            relay.down = Way(args.down)
        clients = [run.client(lines.address, name, idle=600.0) for name in names]
        try:
            await asyncio.gather(*(works(client) for client in clients))
        finally:
            for client in clients:
                await client.close()
        moved = [sum(getattr(relay, way).moved for relay in lines.relays) for way in ("up", "down")]
    found.seconds = [b - a for a, b in itertools.pairwise(ends)]
    found.pushed, found.pulled = (size / 1e6 / rounds / len(names) for size in moved)
    wanted = torch.stack([*sent.values()]).double().mean(dim=0)
    updates = models[0] - models[1], (models[0] - run.learner.parameters.double()) / rounds
    found.error, found.left = (float((update - wanted).norm() / wanted.norm()) for update in updates)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--up", type=float, default=2.5e6, help="bytes a second to the server, for all")
    parser.add_argument("--down", type=float, default=2.5e6, help="bytes a second from the server")
    parser.add_argument("--numel", type=int, default=250_000, help="numbers of a vector")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of a run; the first is not measured")
    parser.add_argument("--workers", type=int, default=4, help=f"at most {len(NAMES)}")
    parser.add_argument("--repeats", type=int, default=2, help="runs with each type")
    parser.add_argument("--json", type=Path, help="also write what was found here")
    args = parser.parse_args()
    found: dict[Dtype, list[Found]] = {dtype: [] for dtype in WIRE}
    for _ in range(args.repeats):
        for dtype, runs in found.items():
            runs.append(asyncio.run(measured(args, dtype)))
    table: dict[str, dict[str, float]] = {}
    for dtype, runs in found.items():
        seconds = statistics.median(second for run in runs for second in run.seconds)
        table[dtype] = {
            "rounds a second": round(1 / seconds, 3),
            "MB pushed": round(runs[0].pushed, 3),
            "MB pulled": round(runs[0].pulled, 3),
            "error": float(f"{runs[0].error:.2g}"),
            "error of the mean": float(f"{runs[0].left:.2g}"),
        }
    plain = table["float32"]
    print("| wire.dtype | rounds a second | MB pushed | MB pulled | error of an update | of their mean |")
    print("|---|---|---|---|---|---|")
    for name, row in table.items():
        speed, size = row["rounds a second"], row["MB pushed"]
        times = f"{speed:.2f} ({speed / plain['rounds a second']:.2f} x)"
        pushed = f"{size:.3f} ({plain['MB pushed'] / size:.2f} times less)"
        errors = f"{row['error']:.1e} | {row['error of the mean']:.1e}"
        print(f"| {name} | {times} | {pushed} | {row['MB pulled']:.3f} | {errors} |")
    if args.json is not None:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings, "found": table}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
