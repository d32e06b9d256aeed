"""What unequal availability does to an average: two workers, one number, by turns.

    python benchmarks/fedlaavg_quadratic.py
    python benchmarks/fedlaavg_quadratic.py --rounds 3 2 --lr 0.05

Worker i has (x - e_i)^2 / 2, with e = 0 and 1, so the best x for both is 0.5. For so many rounds only the
first is there, then only the second for so many, and again. FedAvg averages what is there and ends near the
first. FedLaAvg averages the latest gradients of both, and ends where both are served.

This is a run without a network: `Oldest` invites, `Latest` keeps, the mean aggregates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.server.choices import Oldest
from varangian.server.events import Close, Committed, Event, Invite, Offer, Push, Ready
from varangian.server.invitations import ParticipationPolicy
from varangian.server.latest import Latest
from varangian.server.participation import ParticipationMachine

OPTIMA: Mapping[str, float] = {"w00": 0.0, "w01": 1.0}
POLICY = ParticipationPolicy(
    tuple(OPTIMA), rounds=10**9, quorum=1, deadline=60.0, shortfall="wait", f=0, choice=Oldest(k=1)
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="FedAvg and FedLaAvg on a quadratic, with workers that are there by turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, nargs=2, default=[9, 1], metavar="T", help="of each worker's turns"
    )
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate")
    parser.add_argument("--cycles", type=int, default=500, help="how often both have their turns")
    return parser


def turns(rounds: Sequence[int]) -> Iterator[str]:
    """Who is there, round after round."""
    while True:
        for worker, times in zip(OPTIMA, rounds, strict=True):
            yield from [worker] * times


class Simulation:
    """A server and its workers, without what lies between them."""

    def __init__(self, lr: float, *, latest: bool) -> None:
        self.machine = ParticipationMachine(POLICY)
        self.kept = Latest([*OPTIMA], d=1)
        self.x = torch.zeros(1, dtype=torch.float64)
        self.lr = lr
        self.latest = latest
        """Whether the gradients of those who are away count as well."""

    def round(self, worker: str) -> None:
        """One round in which only this worker is there."""
        self._handle(Ready(worker, self.machine.state.round, at=0.0))

    def _handle(self, event: Event) -> None:
        for effect in self.machine.handle(event):
            match effect:
                case Invite(worker, round):
                    self.kept.replace(worker, (self.x - OPTIMA[worker]).float(), round)
                    self._handle(Offer(worker, round, b"", event.at))
                    self._handle(Push(worker, round, b"its digest", event.at))
                case Close(workers=workers):
                    self._step(self._rows([*workers]))
                    self._handle(Committed(effect.round, event.at))
                case _:
                    pass

    def _rows(self, workers: list[str]) -> list[Tensor]:
        rows = self.kept.rows()
        return [*rows.values()] if self.latest else [rows[worker] for worker in workers]

    def _step(self, rows: list[Tensor]) -> None:
        self.x = self.x - self.lr * Aggregator(Mean())(rows).vector.double()


def end(rounds: Sequence[int], lr: float, cycles: int, *, latest: bool) -> float:
    """Where x is after so many cycles."""
    simulation = Simulation(lr, latest=latest)
    for worker in islice(turns(rounds), cycles * sum(rounds)):
        simulation.round(worker)
    return float(simulation.x)


def biased(rounds: Sequence[int], lr: float) -> float:
    """Where FedAvg ends, after the turns of the second worker: the fixed point of a cycle."""
    first, second = rounds
    return (1 - (1 - lr) ** second) / (1 - (1 - lr) ** (first + second))


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    print(f"{args.rounds[0]} rounds of the first worker, {args.rounds[1]} of the second, lr {args.lr:g}")
    print(f"best for both   {sum(OPTIMA.values()) / len(OPTIMA):.4f}")
    print(f"FedAvg          {end(args.rounds, args.lr, args.cycles, latest=False):.4f}", end="")
    print(f"   ({biased(args.rounds, args.lr):.4f} by formula)")
    print(f"FedLaAvg        {end(args.rounds, args.lr, args.cycles, latest=True):.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
