"""Computation of a round, in the compute thread: gate, aggregation, step, evaluation, and its record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from varangian.server.observability.record import (
    Evaluate,
    Evaluation,
    RoundRecord,
    record_of_skip,
    record_of_step,
    scores_of,
)
from varangian.server.protocol.events import Close, Seconds, Skip, Worker
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.checkpointing import KeepRows
from varangian.server.rounds.membership import MemberChange
from varangian.server.rows.source import RowSource, StepInput
from varangian.server.training.gate import HeldOutGate
from varangian.server.training.learner import Aggregation, Learner
from varangian.server.training.parameters import Version


def evaluation_is_due(round: int, rounds: int, every: int) -> bool:
    """Whether held-out data is looked at after this round: every so often, and after the last."""
    return (round + 1) % every == 0 or round + 1 == rounds


def _hex_digest(version: Version) -> str | None:
    """The digest of parameters; None of those on a device that nobody has asked for."""
    there = version.encoded or version.parameters.device.type == "cpu"
    return version.digest.hex() if there else None


class Computation:
    """All of a run that takes time: calls for the compute thread, one after the other.

    Args:
        learner: the parameters and the rule.
        row_source: makes the rows that the rule sees from the vectors that were pushed.
        policy: of the run as it begins.
        evaluate: parameters to loss and accuracy.
        evaluate_every: in rounds; the last one is always evaluated.
        keep_rows: takes the input of every step.
        gate: leaves vectors out that would raise a held-out loss.
    """

    def __init__(
        self,
        learner: Learner,
        row_source: RowSource,
        policy: RunPolicy,
        evaluate: Evaluate,
        evaluate_every: int,
        keep_rows: KeepRows | None,
        gate: HeldOutGate | None,
    ) -> None:
        self._learner, self._row_source = learner, row_source
        self._workers, self._rounds = policy.workers, policy.rounds
        self._evaluate, self._evaluate_every = evaluate, evaluate_every
        self._keep_rows, self._gate = keep_rows, gate
        self.given = -1
        """The last round whose rows were given to the rule, whatever came of it."""
        self._gated: tuple[int, dict[Worker, float]] = (-1, {})
        """The last round with a gate, and whom that left out."""

    def step(
        self,
        close: Close,
        f: int,
        rows: Mapping[Worker, Tensor],
        windowed: Aggregation | None,
        before: Version,
    ) -> RoundRecord:
        """Aggregate, step and evaluate.

        Args:
            close: the round.
            f: how many of its workers may be Byzantine.
            rows: the vectors that were pushed.
            windowed: the update, where it was aggregated while its rows came.
            before: the parameters of the round.

        Raises:
            AggregationError: the round has no update.
        """
        self.given = close.round
        vectors, buffers = self._learner.split(rows)
        inputs = replace(self._row_source.step_input(close, vectors), buffers=buffers)
        if self._keep_rows is not None:
            if inputs.earlier is None:
                inputs = inputs.measured(self._learner.reference)
            self._keep_rows(close, inputs, self._learner.state())
        gated, measured = self._leave_out(close, f, inputs)
        inputs = inputs.without(gated)
        step = self._learner.step(
            close.round,
            inputs.rows,
            close.faults,
            mix=inputs.mix,
            measure=inputs.measure,
            aggregation=inputs.aggregation or windowed,
            fresh=inputs.fresh,
            buffers=inputs.buffers,
        )
        version = self._learner.version
        if before.encoded:  # workers pull over the network, and the loop has no time for a digest
            _ = version.digest
        # Evaluate, before the next round opens: so it takes nothing from the deadline of that round.
        evaluation, seconds = self._evaluated(close.round)
        seconds = {**measured, **seconds}
        return record_of_step(close, step, inputs.ages, evaluation, seconds, _hex_digest(version), gated)

    def takes_time(self, skip: Skip) -> bool:
        """Whether a round without an update is a matter for the compute thread."""
        due = evaluation_is_due(skip.round, self._rounds, self._evaluate_every)
        return self._row_source.remembers or due

    def reads(self, skip: Skip) -> bool:
        """Whether the vectors of a round without an update count later, and were not given to the rule."""
        return self._row_source.remembers and self.given != skip.round

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> Evaluation | None:
        """Remember a round without an update where rounds are, and evaluate if it is due."""
        self._row_source.skip(skip, self._learner.split(rows)[0])
        return self._evaluated(skip.round)[0]

    def record_of_skip(
        self, skip: Skip, evaluation: Evaluation | None, pushes: Mapping[Worker, str] | None
    ) -> RoundRecord:
        """The record of a round without an update; on the event loop, since it takes no time."""
        record = record_of_skip(skip, evaluation, pushes, _hex_digest(self._learner.version))
        round, gated = self._gated
        return replace(record, gated=gated) if round == skip.round else record

    def forget(self, worker: Worker) -> None:
        """Leave all vectors of this worker out of later rounds."""
        self._row_source.forget(worker)

    def change(self, change: MemberChange) -> None:
        """Change the rows and the rule of the rounds to come."""
        if change.policy.workers != self._workers:
            self._workers = change.policy.workers
            self._row_source.change(change.policy.workers, change.participants)
        self._learner.change(change.aggregator, change.weights)

    def _leave_out(
        self, close: Close, f: int, inputs: StepInput
    ) -> tuple[dict[Worker, float], dict[str, Seconds]]:
        """Workers that the gate leaves out of this round, and the seconds that it took."""
        if self._gate is None or not self._gate.is_due(close.round):
            return {}, {}
        start = time.perf_counter()
        found = self._gate.left_out(
            close.round, self._learner, inputs.rows, close.faults, f, inputs.factors
        )
        self._gated = close.round, found
        return found, {"gate": time.perf_counter() - start}

    def _evaluated(self, round: int) -> tuple[Evaluation | None, dict[str, Seconds]]:
        """The evaluation after this round, if one is due, and the seconds that it took."""
        if not evaluation_is_due(round, self._rounds, self._evaluate_every):
            return None, {}
        start = time.perf_counter()
        evaluation = self._evaluate(self._learner.parameters)
        self._learner.scored(scores_of(evaluation))
        return evaluation, {"evaluate": time.perf_counter() - start}
