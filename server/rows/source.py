"""Aggregation input: the n x d matrix for the rule from the pushed vectors, weighted by their staleness."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from varangian.aggregators import Mixing
from varangian.aggregators.base import among
from varangian.aggregators.mixings.scaled import Scaled
from varangian.server.protocol.events import Close, Skip, Worker
from varangian.server.training.learner import Aggregation, Measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepInput:
    """The input of a step: rows, and how to aggregate them."""

    rows: Mapping[Worker, Tensor]
    """(d,) each; of the workers whose names the record speaks of."""
    mix: tuple[Mixing, ...] = ()
    """Mixings of this round alone, before those of the rule."""
    measure: Measure | None = None
    """Measures the rows, in the order of their names, where that need not be done anew."""
    aggregation: Aggregation | None = None
    """Makes the update in place of the rule."""
    ages: Mapping[Worker, int] | None = None
    """The age of each row's model in rounds; None where all are of this round."""
    fresh: Collection[Worker] | None = None
    """Workers whose rows no step before has seen; None for all of them."""
    buffers: Mapping[Worker, Tensor] | None = None
    """(b,) each, of those who pushed for this round; None where no buffers travel."""
    earlier: Mapping[str, Any] | None = None
    """Inner products of earlier rounds, as the row source has them, which `measure` adds to its own."""

    @property
    def factors(self) -> dict[Worker, float]:
        """By which rows are multiplied before the rule sees them; of those without one it is 1."""
        found = dict[Worker, float]()
        for part in self.mix:
            if isinstance(part, Scaled):
                found = dict(zip(sorted(self.rows), part.factors, strict=True))
        return found

    def without(self, workers: Collection[Worker]) -> StepInput:
        """The same without the rows of some workers."""
        if not workers:
            return self
        names = sorted(self.rows)
        kept = [place for place, name in enumerate(names) if name not in workers]
        buffers = self.buffers
        return replace(
            self,
            rows={names[place]: self.rows[names[place]] for place in kept},
            mix=tuple(among(part, kept) for part in self.mix),
            measure=None if self.measure is None else _of_places(self.measure, [*kept, len(names)]),
            fresh=None if self.fresh is None else {*self.fresh} - {*workers},
            buffers=None if buffers is None else {w: b for w, b in buffers.items() if w not in workers},
        )

    def measured(self, reference: Tensor | None) -> StepInput:
        """The same, with the rows measured once for whoever asks."""
        if self.measure is None:
            return self
        found = self.measure(reference)
        return replace(self, measure=lambda _: found)


def _of_places(measure: Measure, places: Sequence[int]) -> Measure:
    """The same measure of some of the rows, and of the reference, which has the last place."""
    chosen = torch.tensor([*places])
    return lambda reference: measure(reference)[chosen][:, chosen]


class RowSource(Protocol):
    """A source of rows: from the vectors pushed for a round to the rows that the rule sees.

    All of it is called in the learner's thread, one after the other.
    """

    remembers: ClassVar[bool]
    """Whether vectors of one round count in later ones, so that those of a skipped round are read too."""
    fixed: ClassVar[str]
    """Why the workers cannot change while a run goes on; empty if they can."""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor], /) -> StepInput:
        """The rows of a closed round. `rows` are those that were pushed; they last for the step."""
        ...

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor], /) -> None:
        """A round had no update. `rows` are those pushed for it, unless `step_input` had them already."""
        ...

    def forget(self, worker: Worker, /) -> None:
        """Leave all vectors of this worker, which was expelled or revoked, out of later rounds."""
        ...

    def change(self, workers: Sequence[Worker], participants: int, /) -> None:
        """From the next round on these are the workers of the run, and so many vectors are new at most.

        Vectors of workers that are gone are forgotten.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that later rounds depend on: tensors and plain values, views of which last for this round."""
        ...

    def restore(self, state: Mapping[str, Any], /) -> None:
        """Go on from what `state` gave, with the same bits.

        Raises:
            ValueError: it is of other workers, or of another model.
        """
        ...

    def close(self) -> None:
        """Give back what was kept."""
        ...


class Pushed:
    """The pushed vectors, unchanged."""

    remembers: ClassVar[bool] = False
    fixed: ClassVar[str] = ""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        return StepInput(rows, ages=close.ages or None)

    def skip(self, skip: Skip, rows: Mapping[Worker, Tensor]) -> None:
        """No effect: nothing is kept."""

    def forget(self, worker: Worker) -> None:
        """No effect: nothing is kept."""

    def change(self, workers: Sequence[Worker], participants: int) -> None:
        """No effect: nothing is kept."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """No effect: nothing is kept."""

    def close(self) -> None:
        """No effect: nothing is kept."""


class WeightedByAge(Pushed):
    """The pushed vectors, each times its staleness weight."""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        factors = tuple(close.factors[worker] for worker in sorted(rows))
        if all(factor == 1 for factor in factors):
            return super().step_input(close, rows)
        return StepInput(rows, mix=(Scaled(factors),), ages=close.ages)
