"""A real server, alone in its process, that says what it may take and has taken; and its workers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from functools import partial
from pathlib import Path

import torch

from varangian.aggregators import Aggregator, Krum, Median
from varangian.config import load
from varangian.launch.checkpoints.folder import Origin
from varangian.launch.checkpoints.keeper import CheckpointKeeper
from varangian.launch.memory_budget import CALL, CONNECTION, MemoryBudget
from varangian.launch.output.run_folder import RunFolder
from varangian.protos.layout import Layout
from varangian.protos.network.descriptors import connections
from varangian.protos.network.grpc_options import LOOKAHEAD
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.limits.limits import Limits
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rounds.windowed import window_columns
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.server.transport.grpc_server import METADATA, STREAMS
from varangian.worker.loop import work
from varangian.worker.transport.client import Client

NAMES = tuple(f"w{i:02d}" for i in range(6))
LAYOUT = Layout((("weight", (16_000_000,)),))
ROUNDS = 2
SECRET = b"0123456789abcdef"
LIMITS = Limits(grace=20.0)
SGD = Sgd(lr=0.5, momentum=0.9)


def peak() -> int:
    """Bytes. What `getrusage` says can be that of the process which started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


async def workers(address: str) -> None:
    vectors = torch.randn(len(NAMES), LAYOUT.numel)

    async def one(i: int) -> None:
        token = Sessions(NAMES, SECRET).token(NAMES[i])

        async def compute(round: int, parameters: torch.Tensor) -> torch.Tensor:
            return vectors[i]

        async with Client(address, NAMES[i], token, LAYOUT) as client:
            await work(client, compute)

    await asyncio.gather(*(one(i) for i in range(len(NAMES))))


def keeper_in(folder: str) -> CheckpointKeeper:
    """A keeper of a checkpoint after every round."""
    config = load(None, [f"output={folder}", "server.checkpoint.every=1"])
    assert config.server.checkpoint is not None
    run, origin = RunFolder.create(config), Origin.of(config, "run-1", 0, LAYOUT)
    return CheckpointKeeper(
        run, config.server.checkpoint, 1, ROUNDS, origin, partial(print, file=sys.stderr)
    )


async def serving(window: bool, lane: bool, folder: str | None = None) -> None:
    """Serve a run, with checkpoints in a folder if one is given."""
    columns = window_columns(LAYOUT.numel) if window else None
    # The parameters, the last aggregate and the momentum.
    snapshot = 0 if folder is None else 4 * LAYOUT.numel * (2 + SGD.vectors)
    account = MemoryBudget.of(
        len(NAMES), LAYOUT.numel, SGD, limits=LIMITS, columns=columns, data_channel=lane, snapshot=snapshot
    )
    rule = Aggregator(Median() if window else Krum(f=1))
    policy = RunPolicy(NAMES, ROUNDS, len(NAMES), 60.0, "wait", 1, selection=Everyone())
    learner = Learner(torch.zeros(LAYOUT.numel), rule, SGD, rounds=ROUNDS, seed=1)
    coordinator = Coordinator(
        Machine(policy),
        learner,
        evaluate=lambda _: (0.0, 0.0),
        evaluate_every=100,
        observe=lambda _: None,
        window=window,
        keeper=None if folder is None else keeper_in(folder),
    )

    def ready(address: str) -> None:
        # With all payloads beside gRPC there are no messages of it; and nobody else connects.
        others = connections(len(NAMES)) * (CONNECTION + STREAMS * (CALL + METADATA + LOOKAHEAD))
        spare = account.streams + account.model if lane else others
        first = {"address": address, "most": account.total, "rows": account.rows, "spare": spare}
        print(json.dumps(first), flush=True)

    reason = await serve(
        coordinator,
        Sessions(NAMES, SECRET),
        LAYOUT,
        run_id="run-1",
        host="127.0.0.1",
        port=0,
        ready=ready,
        stop=asyncio.Event(),
        limits=LIMITS,
        data_port=0 if lane else None,
    )
    print(json.dumps({"reason": reason, "peak": peak(), "account": account.sentence}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serving("window" in sys.argv, "lane" in sys.argv, *sys.argv[3:]))
