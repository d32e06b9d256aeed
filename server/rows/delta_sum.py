"""Delta sum (FedLaAvg in its form of deltas): only the mean of all latest vectors is kept.

n  workers     d  parameters
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from varangian.aggregators import Aggregate
from varangian.server.protocol.events import Close, Skip, Worker
from varangian.server.rows.source import StepInput
from varangian.structured_logs import event

log = logging.getLogger(__name__)

STRIP = 1 << 18
"""Numbers that are widened at once."""


class DeltaSum:
    """Each worker sends the change of its vector, and u <- u + sum of the changes / n is the mean of all.

    This is how "Federated Optimization under Intermittent Client Availability" (Yan et al., 2023) keeps
    O(d) numbers in place of n vectors. It is for workers that are trusted: in a sum no vector can be told
    from another, and what was added by mistake or by an attacker is never taken out. u is in float64, so
    that many small changes are not rounded away.
    """

    remembers: ClassVar[bool] = True
    fixed: ClassVar[str] = "of deltas only the sum is kept, and those of workers that left would stay in it"

    def __init__(self, workers: Sequence[Worker], d: int) -> None:
        self._n = len(workers)
        self._mean = torch.zeros(d, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """u, (d,) in float64; workers that have never pushed count as zero."""
        return self._mean

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        """Deltas of a closed round: they count, whatever becomes of the step."""
        self._add(rows[worker] for worker in sorted(rows))
        return StepInput(rows, aggregation=self._aggregate, ages=close.ages or None)

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> None:
        """A round without a step; its workers were told that their deltas count."""
        self._add(rows[worker] for worker in sorted(rows))

    def forget(self, worker: Worker) -> None:
        """Warn only: the deltas of a worker cannot be taken out of their sum."""
        log.warning(
            "earlier deltas of %s stay in the update: only the sum of deltas is kept",
            worker,
            extra=event("deltas_stay", worker=worker),
        )

    def change(self, workers: Sequence[Worker], participants: int) -> None:
        """Refuse: see `fixed`.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"The workers of a run should stay the same: {self.fixed}.")

    def state(self) -> dict[str, Any]:
        return {"mean": self._mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["mean"].shape != self._mean.shape:
            expected, found = tuple(self._mean.shape), tuple(state["mean"].shape)
            raise ValueError(f"The mean of latest vectors should be {expected}. Found {found}.")
        self._mean.copy_(state["mean"])

    def close(self) -> None:
        self._mean = torch.empty(0, dtype=torch.float64)

    def _aggregate(self) -> Aggregate:
        """The mean of the latest vectors of all n workers, not only of those who have pushed."""
        return Aggregate(vector=self._mean.to(torch.float32), weights=None, dropped=())

    def _add(self, rows: Iterable[Tensor]) -> None:
        for row in rows:
            self._mean = self._mean.to(row.device)
            for to, strip in zip(self._mean.split(STRIP), row.split(STRIP), strict=True):
                to.add_(strip.to(to), alpha=1 / self._n)
