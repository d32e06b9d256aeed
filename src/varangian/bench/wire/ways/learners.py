"""Learners that leave out a part of a round, to see what the rest takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Krum
from varangian.server.training.learner import Learner, PartialAggregate, Step
from varangian.server.training.optimizer import Sgd

MANY = 10**9
"""Rounds, and seconds of a deadline: no measurement ends by itself."""


class Late(Learner):
    """Does nothing before all rows are there."""

    def begin(self, workers: Sequence[str], faults: int) -> PartialAggregate:
        begun = super().begin(workers, faults)
        begun.work.lost = True
        return begun


class Idle(Late):
    """Keeps the rows of the last round until it is told to go on, and learns nothing."""

    def __init__(self, numel: int) -> None:
        # A rule that needs all rows until the end, so that they are kept.
        aggregator = Aggregator(Krum(f=0))
        super().__init__(torch.zeros(numel), aggregator, Sgd(lr=1.0), rounds=MANY, seed=1)
        self.go = threading.Semaphore(0)
        self.rows: Mapping[str, Tensor] = {}

    def step(
        self,
        round: int,
        rows: Mapping[str, Tensor],
        faults: Mapping[str, str],
        begun: object = None,
        *,
        fresh: object = None,
    ) -> Step:
        self.rows = rows
        self.go.acquire()
        return Step(0.0, None, 0.0, dict(faults), {}, 1.0, {"aggregate": 0.0, "step": 0.0})
