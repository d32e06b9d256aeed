"""Rounds of the server without a network: what aggregating costs when the rows arrive at a given pace.

    python benchmarks/overlap.py --rules multi_krum median flag

Prints one line for each rule: seconds from the first byte of a round to the next snapshot, and how that
compares with only receiving the same bytes at the same pace.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import torch

from varangian.aggregators import Aggregator, aggregator_from
from varangian.config.default_names import default_names
from varangian.protos.encoding import encode_vector
from varangian.protos.network.malloc import keep_large_blocks
from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.events import RoundPolicy
from varangian.server.protocol.synchronous import RoundMachine
from varangian.server.rounds.coordinator import Coordinator, Slot
from varangian.server.training.learner import Learner, PartialAggregate
from varangian.server.training.optimizer import Sgd

TURN = 4 << 20
"""Bytes of one worker before it is another's turn, as at the gate."""
CHUNK = 1 << 20


class Idle(Learner):
    """Begins nothing early."""

    def begin(self, workers: Sequence[str], faults: int) -> PartialAggregate:
        begun = super().begin(workers, faults)
        begun.work.lost = True
        return begun


class Pace:
    """Lets so many bytes pass in a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._start = time.perf_counter()
        self._bytes = 0

    async def take(self, size: int) -> None:
        self._bytes += size
        early = self._start + self._bytes / self._rate - time.perf_counter()
        await asyncio.sleep(max(0.0, early))


async def receive(slots: Sequence[Slot], sources: Sequence[memoryview], rate: float) -> None:
    """Everyone's bytes, in turns."""
    pace, size = Pace(rate), slots[0].size
    for turn in range(0, size, TURN):
        for slot, source in zip(slots, sources, strict=True):
            for at in range(turn, min(turn + TURN, size), CHUNK):
                piece = source[at : min(at + CHUNK, turn + TURN, size)]
                await pace.take(len(piece))
                await slot.put(piece)


async def measure(aggregator: Aggregator | None, args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a round and of what is after its last byte; without an aggregator, of receiving."""
    workers = default_names(args.workers)
    n, rounds = args.workers, args.rounds
    policy = RoundPolicy(workers, rounds, quorum=n, deadline=1e9, shortfall="wait", f=args.f)
    kind = Idle if aggregator is None else Learner
    rule = aggregator or aggregator_from("mean", "aggregator", f=0)
    learner = kind(torch.zeros(args.columns), rule, Sgd(lr=0.1), rounds=rounds, seed=1)
    records: list[RoundRecord] = []
    coordinator = Coordinator(
        RoundMachine(policy),
        learner,
        evaluate=lambda _: (0.0, 0.0),
        evaluate_every=1 << 30,
        observe=records.append,
        threads=args.threads,
    )
    serving = asyncio.create_task(coordinator.run(asyncio.Event()))
    noise = encode_vector(torch.randn(args.columns + args.workers * 1000))
    sources = [noise[4000 * i :] for i in range(args.workers)]
    whole, tails = [], []
    for _ in range(rounds):
        round = coordinator.round
        slots = [await coordinator.offer(w, round, w.encode()) for w in workers]
        ready = [slot for slot in slots if isinstance(slot, Slot)]
        began = time.perf_counter()
        await receive(ready, sources, args.rate)
        received = time.perf_counter()
        if aggregator is None:
            whole.append(received - began)
            for slot in ready:
                await coordinator.release(slot)
            continue
        for slot in ready:
            await coordinator.complete(slot)
        await coordinator.snapshot(round, 1e9)
        whole.append(time.perf_counter() - began)
        tails.append(time.perf_counter() - received)
        if args.verbose:
            print(records[-1].seconds, whole[-1], tails[-1])
    serving.cancel()
    return statistics.median(whole[1:] or whole), statistics.median(tails[1:] or tails or [0.0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounds of the server without a network.")
    parser.add_argument("--rules", nargs="+", default=["multi_krum", "median", "flag"])
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--f", type=int, default=3)
    parser.add_argument("--columns", type=int, default=11_200_000)
    parser.add_argument("--rate", type=float, default=600e6, help="bytes in a second, all workers together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    keep_large_blocks()
    torch.set_num_threads(1)
    only, _ = asyncio.run(measure(None, args))
    print(f"{'receive only':14} {only:.3f} s")
    for name in args.rules:
        seconds, tail = asyncio.run(measure(aggregator_from(name, "aggregator", f=args.f), args))
        print(f"{name:14} {seconds:.3f} s  {seconds / only:.3f}x  after the last byte {tail:.3f} s")


if __name__ == "__main__":
    main()
