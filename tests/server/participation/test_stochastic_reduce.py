"""A reduce over one neighbourhood at a time converges to what the reduce over all converges to."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.aggregators.graphs import Complete, Exponential, Graph, OnePeer, Ring
from varangian.aggregators.graphs.base import Links
from varangian.aggregators.graphs.links import Static
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.protocol.events import (
    Close,
    Committed,
    Effect,
    Event,
    Invite,
    Offer,
    Push,
    Ready,
    Worker,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy, Selection

N, D = 16, 8
WORKERS = tuple(f"w{i:02}" for i in range(N))
LR = 0.2
PUSHES = 4_800
CLOSE = 0.02
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


class Training:
    """A run without time: who is invited answers at once, and asks for the next model."""

    def __init__(self, choice: Selection, settle: float) -> None:
        policy = RunPolicy(
            WORKERS, rounds=10**6, quorum=1, deadline=1.0, shortfall="wait", f=0, selection=choice
        )
        self.machine = Machine(policy)
        self.quadratic, self.x = Quadratic(), torch.zeros(D, dtype=torch.float64)
        self.settle = settle
        self.rows: dict[Worker, Tensor] = {}
        self.pushed = 0
        self.effects = deque[Effect]()
        for worker in WORKERS:
            self.say(Ready(worker, 0, 0.0))

    def say(self, event: Event) -> None:
        self.effects.extend(self.machine.handle(event))

    def step(self) -> None:
        match self.effects.popleft():
            case Invite(worker, round):
                self.rows[worker] = self.quadratic.gradient(worker, self.x)
                self.say(Offer(worker, round, b"", 0.0))
                self.say(Push(worker, round, b"its digest", 0.0))
                self.say(Ready(worker, round + 1, 0.0))
            case Close(round, workers):
                rate = LR / (1 + self.pushed / self.settle)
                rows = [self.rows[worker] for worker in workers]
                self.x = self.x - rate * Aggregator(Mean())(rows).vector
                self.pushed += len(rows)
                self.say(Committed(round, 0.0))
            case _:
                pass


def trained(choice: Selection, pushes: int, settle: float = 20 * N) -> tuple[Tensor, int]:
    """Where so many pushes lead, with a rate that halves after the first `settle`; and how many rounds."""
    training = Training(choice, settle)
    while training.pushed < pushes:
        training.step()
    return training.x, training.machine.state.round


def error(x: Tensor) -> float:
    """Of the distance from the start to the optimum of all."""
    optimum = Quadratic().optimum
    return float((x - optimum).norm() / optimum.norm())


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        (BufferSelection(16, tau=0), 16),
        # Graphs that change are the harder ones.
        pytest.param(NeighbourhoodSelection(Complete()), 16, marks=pytest.mark.exhaustive),
        pytest.param(NeighbourhoodSelection(Exponential()), 5, marks=pytest.mark.exhaustive),
        (NeighbourhoodSelection(Exponential(), tau=0), 5),
        pytest.param(NeighbourhoodSelection(Ring()), 3, marks=pytest.mark.exhaustive),
        pytest.param(NeighbourhoodSelection(OnePeer(), tau=0), 2, marks=pytest.mark.exhaustive),
    ],
    ids=repr,
)
def test_neighbourhoods_converge_to_what_all_converge_to(choice: Selection, size: int):
    x, rounds = trained(choice, PUSHES)
    assert error(x) < CLOSE
    assert rounds == -(-PUSHES // size)  # so many workers push in each


@pytest.mark.exhaustive
@pytest.mark.parametrize("graph", [OnePeer(), Exponential()], ids=repr)
def test_at_a_constant_rate_they_circle_around_it(graph: Graph):
    """What is left falls with the rate, and with nothing else."""
    early, _ = trained(NeighbourhoodSelection(graph, tau=0), PUSHES // 4, settle=math.inf)
    late, _ = trained(NeighbourhoodSelection(graph, tau=0), PUSHES // 2, settle=math.inf)
    assert min(error(early), error(late)) > 5 * CLOSE
    assert error(late) == pytest.approx(error(early), rel=0.5)


class Star(Static):
    """Everybody hears from the first four."""

    def links(self, n: int) -> Links:
        return np.fromfunction(lambda i, j: (j < 4) & (i != j), (n, n))


def test_a_graph_in_which_some_are_heard_more_often_converges_to_something_else():
    star = NeighbourhoodSelection(Star(), tau=0)
    assert star.group(N, 9) == (0, 1, 2, 3, 9)
    x, _ = trained(star, PUSHES // 4)
    assert error(x) > 10 * CLOSE
