"""A real server, alone in its process: prints where it listens, then a line for each round.

It ends when nobody holds its standard input any more.
"""

import argparse
import asyncio
import json
import logging
import sys
import threading
from pathlib import Path

import torch

from varangian.aggregators import aggregator_from
from varangian.config import build, load
from varangian.launch.memory_budget import MemoryBudget
from varangian.protos.layout import Layout
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

SECRET = b"a secret that the tests may know"


def say(**words):
    print(json.dumps(words), flush=True)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--quorum", type=int, default=2)
    parser.add_argument("--numel", type=int, default=500_000)
    parser.add_argument("--deadline", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--rule", default="mean")
    parser.add_argument("--f", type=int, default=0)
    parser.add_argument("--idle", type=float, default=1.0)
    parser.add_argument("--patience", type=float, default=0.1)
    parser.add_argument("--silence", type=float, default=10.0)
    parser.add_argument("--certs", type=Path, help="the bundle of a server whose workers have certificates")
    parser.add_argument("--window", type=int, default=0, help="1: keep a few blocks of each vector only")
    parser.add_argument("--settings", type=json.loads, help="key=value, of a run whose workers are invited")
    return parser.parse_args()


def synchronous(args, names):
    """A driver, by numbers."""
    policy = RunPolicy(names, args.rounds, args.quorum, args.deadline, "wait", args.f, selection=Everyone())
    rule = aggregator_from(args.rule, "--rule", f=args.f)
    learner = Learner(torch.zeros(args.numel), rule, Sgd(lr=0.1), rounds=args.rounds, seed=1)
    return Coordinator(Machine(policy), learner, window=bool(args.window), **OBSERVED)


def configured(args, settings):
    """A driver, as `varangian server` would make it."""
    config = load(None, [f"workers={args.workers}", f"f={args.f}", f"rounds={args.rounds}", *settings])
    learner = build.learner(config, torch.zeros(args.numel))
    more = {
        "row_source": config.participation.row_source(config.worker_names, args.numel, logging.warning),
        "row_slots": config.participation.row_slots(config.workers, config.f),
    }
    return Coordinator(
        build.machine(config),
        learner,
        rows=config.participation.row_dtype(config.server.rows),
        **more,
        **OBSERVED,
    )


def observed(record):
    fields = ("round", "seconds", "missing", "dropped", "skipped", "ages", "weights", "update_norm")
    say(**{field: getattr(record, field) for field in fields})


OBSERVED = {"evaluate": lambda _: (0.0, 0.0), "evaluate_every": 10**9, "observe": observed}


async def main(args):
    names = tuple(f"w{i:02d}" for i in range(args.workers))
    limits = Limits(idle=args.idle, patience=args.patience, grace=0.2)
    bound = MemoryBudget.of(args.workers, args.numel, Sgd(lr=0.1), limits=limits).total
    coordinator = synchronous(args, names) if args.settings is None else configured(args, args.settings)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def answer():
        """Whether the open round waits for workers alone: for no time, no upload and no computation."""
        machine = coordinator._machine
        say(still=coordinator.idle and machine.wake_at is None and not machine.state.uploads)

    def wait_for_the_end():
        for _ in sys.stdin:
            loop.call_soon_threadsafe(answer)
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    security = Security(args.certs) if args.certs else None
    secret, certificate_reader = (None, security.certificate_reader) if security else (SECRET, None)
    await serve(
        coordinator,
        Sessions(names, secret, certificate_reader=certificate_reader, timeout=args.silence),
        Layout((("weight", (args.numel,)),)),
        run_id="besieged",
        host="127.0.0.1",
        port=0,
        ready=lambda address: say(address=address, bound=bound),
        stop=stop,
        limits=limits,
        security=security,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.captureWarnings(True)
    asyncio.run(main(arguments()), debug=False)
