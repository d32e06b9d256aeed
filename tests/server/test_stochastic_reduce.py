"""A reduce over one neighbourhood at a time converges to what the reduce over all converges to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.server.choices import Everyone, Rotating
from varangian.server.events import Worker
from varangian.server.graphs import Complete, Exponential, Graph, OnePeer, Ring
from varangian.server.invitations import Arrived, Choice, Invite, Opened, ParticipationPolicy, Ready, Reduce
from varangian.server.participation import ParticipationMachine

N, D = 16, 8
WORKERS = tuple(f"w{i:02}" for i in range(N))
LR = 0.2
PUSHES = 12_000
CLOSE = 0.01
"""Of the distance from the start to the optimum."""


class Quadratic:
    """Worker i has (x - e_i)' H (x - e_i) / 2, with H between 0.5 and 1.5 and its own e_i."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(7)
        self.centres = 1 + torch.randn(N, D, generator=rng, dtype=torch.float64)
        self.curvature = torch.linspace(0.5, 1.5, D, dtype=torch.float64)

    def gradient(self, worker: Worker, x: Tensor) -> Tensor:
        return self.curvature * (x - self.centres[WORKERS.index(worker)])

    @property
    def optimum(self) -> Tensor:
        return self.centres.mean(dim=0)


def trained(choice: Choice, pushes: int, settle: float = 20 * N) -> tuple[Tensor, int]:
    """Where so many pushes lead, with a rate that halves after the first `settle`; and how many rounds."""
    quadratic, x = Quadratic(), torch.zeros(D, dtype=torch.float64)
    machine = ParticipationMachine(ParticipationPolicy(WORKERS, choice))
    effects = [effect for worker in WORKERS for effect in machine.handle(Ready(worker, 0, 0.0))]
    round = pushed = 0
    while pushed < pushes:
        invited = sorted(effect.worker for effect in effects if isinstance(effect, Invite))
        rows = [quadratic.gradient(worker, x) for worker in invited]
        (reduce,) = (e for worker in invited for e in machine.handle(Arrived(worker, round, 0.0)))
        assert isinstance(reduce, Reduce)
        assert [arrival.worker for arrival in reduce.arrivals] == invited
        x = x - LR / (1 + pushed / settle) * Aggregator(Mean())(rows).vector
        pushed, round = pushed + len(rows), round + 1
        for worker in invited:
            machine.handle(Ready(worker, round, 0.0))
        effects = [*machine.handle(Opened(round, 0.0))]
    return x, round


def error(x: Tensor) -> float:
    """Of the distance from the start to the optimum of all."""
    optimum = Quadratic().optimum
    return float((x - optimum).norm() / optimum.norm())


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        (Everyone(), 16),
        (Rotating(Complete().neighbours), 16),
        (Rotating(Exponential().neighbours), 5),
        (Rotating(Ring().neighbours), 3),
        (Rotating(OnePeer().neighbours), 2),
    ],
    ids=repr,
)
def test_neighbourhoods_converge_to_what_all_converge_to(choice: Choice, size: int):
    x, rounds = trained(choice, PUSHES)
    assert error(x) < CLOSE
    assert rounds == -(-PUSHES // size)  # so many workers push in each


@pytest.mark.parametrize("graph", [OnePeer(), Exponential()], ids=repr)
def test_at_a_constant_rate_they_circle_around_it(graph: Graph):
    """What is left falls with the rate, and with nothing else."""
    early, _ = trained(Rotating(graph.neighbours), PUSHES // 4, settle=math.inf)
    late, _ = trained(Rotating(graph.neighbours), PUSHES // 2, settle=math.inf)
    assert min(error(early), error(late)) > 5 * CLOSE
    assert error(late) == pytest.approx(error(early), rel=0.5)


def test_a_graph_in_which_some_are_heard_more_often_converges_to_something_else():
    star = Rotating(lambda n, i, t: [j for j in range(4) if j != i])
    assert star.members(N, 9) == (0, 1, 2, 3, 9)
    x, _ = trained(star, PUSHES // 4)
    assert error(x) > 10 * CLOSE
