"""Everything that takes long: the aggregate, the step and the evaluation, in one thread of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from varangian.server.observability.record import (
    Evaluate,
    Evaluation,
    RoundRecord,
    evaluation_is_due,
    record_of_step,
)
from varangian.server.observability.status import Snapshot
from varangian.server.protocol.events import Close, Seconds, Skip
from varangian.server.rows.source import RowSource
from varangian.server.training.learner import Aggregation, Learner

T = TypeVar("T")


class ComputeThread:
    """One piece after the other, so that the loop answers at all times.

    Args:
        learner: holds the parameters.
        merge: from what was pushed to what the rule sees.
        rounds: of the run.
        evaluate: parameters to scores.
        every: in rounds; the last one is always evaluated.
        executor: where it runs, one piece at a time; by default a thread that ends with the run.
        threads: torch threads of that thread. The same number gives the same bits.
    """

    def __init__(
        self,
        learner: Learner,
        row_source: RowSource,
        rounds: int,
        evaluate: Evaluate,
        every: int,
        executor: Executor | None,
        threads: int,
    ) -> None:
        self._learner = learner
        self._row_source = row_source
        self._rounds = rounds
        self._evaluate = evaluate
        self._every = every
        self._given = -1
        """The last round whose rows were given to the rule, whatever came of it."""
        self._executor = executor or _one_thread(threads)
        self._owned = executor is None

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def advance(
        self, close: Close, rows: Mapping[str, Tensor], aggregation: Aggregation | None
    ) -> tuple[RoundRecord, Snapshot]:
        """The record of a round, and the parameters after it.

        The evaluation comes before the next round opens, so that it takes nothing from its deadline.
        """

        def step() -> tuple[RoundRecord, Snapshot]:
            self._given = close.round
            given = self._row_source.step_input(close, rows)
            done = self._learner.step(
                close.round,
                given.rows,
                close.faults,
                mix=given.mix,
                measure=given.measure,
                aggregation=given.aggregation or aggregation,
                fresh=given.fresh,
            )
            evaluation, seconds = self._evaluation(close.round)
            seconds["wait"] = close.waited
            record = record_of_step(
                close.round,
                done,
                missing=close.missing,
                not_waited_for=close.not_waited_for,
                because=close.because,
                declined=close.declined,
                revoked=close.revoked,
                ages=given.ages,
                evaluation=evaluation,
                seconds=seconds,
            )
            return record, Snapshot.of(self._learner.payload())

        return await self.run(step)

    async def skipped(self, skip: Skip, rows: Mapping[str, Tensor]) -> Evaluation | None:
        """What a round without an update leaves: an evaluation, if it is due."""

        def passed() -> Evaluation | None:
            self._row_source.skip(skip, {} if self._given == skip.round else rows)
            evaluation, _ = self._evaluation(skip.round)
            return evaluation

        return await self.run(passed)

    async def forget(self, worker: str) -> None:
        """Nothing that this worker has sent so far is in a later round."""
        await self.run(lambda: self._row_source.forget(worker))

    def close(self) -> None:
        if self._owned:
            self._executor.shutdown(wait=False)

    def _evaluation(self, round: int) -> tuple[Evaluation | None, dict[str, Seconds]]:
        if not evaluation_is_due(round, self._rounds, self._every):
            return None, {}
        start = time.perf_counter()
        evaluation = self._evaluate(self._learner.parameters)
        return evaluation, {"evaluate": time.perf_counter() - start}


def _one_thread(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "varangian-learner", torch.set_num_threads, (threads,))
