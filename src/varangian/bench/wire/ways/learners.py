"""Learners that leave out a part of a round, to measure the rest."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.server.training.learner import Learner, Step
from varangian.server.training.optimizers import Sgd

MANY = 10**9
"""Rounds, and seconds of a deadline: no measurement ends by itself."""


class Idle(Learner):
    """Keeps the rows of the last round until it is told to go on, and learns nothing."""

    def __init__(self, numel: int) -> None:
        super().__init__(
            torch.zeros(numel, dtype=torch.float32), Aggregator(Mean()), Sgd(lr=1.0), rounds=MANY, seed=1
        )
        self.go = threading.Semaphore(0)
        self.rows: Mapping[str, Tensor] = {}

    def step(
        self, round: int, rows: Mapping[str, Tensor], faults: Mapping[str, str], **options: Any
    ) -> Step:
        self.rows = rows
        self.go.acquire()
        return Step(0.0, None, 0.0, dict(faults), {}, 1.0, {"aggregate": 0.0, "step": 0.0})
