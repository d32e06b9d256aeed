"""Server training step: aggregate a round's vectors, step the optimizer, report each worker's weight.

d  parameters     n  rows of the round, in the order of their workers' names
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from varangian.aggregators import Aggregate, AggregationError, Aggregator, Mixing
from varangian.aggregators.kernels.cores import every_core
from varangian.aggregators.numeric.timing import time_parts
from varangian.aggregators.streaming.stream import Stream
from varangian.own_classes import shown
from varangian.protos.layout import Fragments
from varangian.protos.payloads.encoding import put, take
from varangian.server.training.ema import Average, samples
from varangian.server.training.fragments import FragmentSteppers
from varangian.server.training.optimizers import AnyStepper, Optimizer, stepper_for
from varangian.server.training.parameters import ParameterVersions, Version, norm

Measure: TypeAlias = Callable[[Tensor | None], Tensor]
"""From the point to measure from to what `Aggregator.__call__` takes as `measured`, of certain rows."""
HALF = 1e-12
"""A relative error of sums of weights: equal ones have their median where it is without weights."""
Aggregation: TypeAlias = Callable[[], Aggregate]
"""Makes an update in place of the rule."""


@dataclass(frozen=True)
class Step:
    """The outcome of one step on the model."""

    norm: float
    """Euclidean norm of the aggregate."""
    weights: dict[str, float] | None
    """The coefficient of each worker's row in the aggregate; None for a rule without weights."""
    reference_weight: float
    """The coefficient of the last aggregate."""
    dropped: dict[str, str]
    """Workers whose vectors were dropped, with the reason."""
    details: dict[str, dict[str, float]]
    """Further values that the rule reports of each worker, by name."""
    lr: float
    seconds: dict[str, float]
    """By phase: aggregate, step."""
    parts: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds of the parts of aggregate, for a rule that measures inner products: gram, rule."""
    effective: float | None = None
    """The effective number of workers, (sum c)^2 / sum c^2 of the weights c; None without weights."""
    spread: float | None = None
    """Mean squared distance of the rows to the aggregate; None where no distance was measured."""


class Learner:
    """The parameters, the aggregation rule and the optimizer of a run.

    A step depends on the parameters, the optimizer's state, the last aggregate, the seed, the round and the
    rows by name; not on the order in which rows came. An average of the parameters, if there is one,
    follows each step; `batch` is how many samples a row was made from. All that is as long as the model is
    on `device`, where rows come from too. `blocks` are the sizes of the model's parameter tensors, for a
    rule that is applied to each by itself, and `shapes` their shapes, for an optimizer that sees them.

    The last `buffers` numbers of the vector are no parameters: the rule does not see them, and each is the
    median of what the workers of a round have sent, where an even number of them has two the lower one. So
    an integer stays one, and f of 2 f + 1 workers cannot move a number beyond those of the others.
    `weights` says what the rows of each worker weigh, where not all weigh the same.
    With `fragments` the rows of a round, the update and the step are those of the fragment of that round.
    """

    def __init__(
        self,
        parameters: Tensor,
        aggregator: Aggregator,
        optimizer: Optimizer,
        *,
        rounds: int,
        seed: int,
        average: Average | None = None,
        batch: int = 1,
        device: torch.device | str = "cpu",
        blocks: Sequence[int] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        weights: Mapping[str, float] | None = None,
        buffers: int = 0,
        fragments: Fragments | None = None,
    ) -> None:
        self._versions = ParameterVersions(parameters, device)
        self._aggregator = aggregator
        self._d = parameters.numel() - buffers
        self.fragments = fragments
        """Into which the parameters are split, if they are."""
        trained = self._versions.current[: self._d]
        self._stepper: AnyStepper | FragmentSteppers = (
            stepper_for(optimizer, trained, shapes)
            if fragments is None
            else FragmentSteppers(optimizer, trained, shapes, fragments)
        )
        self._rounds = rounds
        self._seed = seed
        self._batch = batch
        self._blocks = blocks
        self._weights = weights
        self.average = average
        self.buffers = buffers
        """How many numbers at the end of the vector are buffers."""
        self._spare = torch.empty_like(self._versions.current[: self._d])
        self.reference: Tensor | None = None
        """The last aggregate (d,), from which the next rows are measured."""

    @property
    def parameters(self) -> Tensor:
        """(d + b,) float32, b buffers behind them; not to be written to, nor kept beyond the next step."""
        return self._versions.current

    @property
    def columns(self) -> int:
        """The most numbers that a row of a round has."""
        return self.parameters.numel() if self.fragments is None else max(self.fragments.numels)

    @property
    def averaged(self) -> Tensor | None:
        """The average of the parameters, with the buffers of the model; None where there is none."""
        if self.average is None or not self.buffers:
            return None if self.average is None else self.average.parameters
        return torch.cat([self.average.parameters, self.parameters[self._d :]])

    def split(self, rows: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
        """Vectors (d + b,) as views of what the rule sees, and of their buffers if there are any."""
        if not self.buffers:
            return rows, None
        d = self._d
        return {name: row[:d] for name, row in rows.items()}, {name: row[d:] for name, row in rows.items()}

    def change(self, aggregator: Aggregator, weights: Mapping[str, float] | None = None) -> None:
        """Aggregate by another rule from the next round on, as one with another f, or by other weights."""
        self._aggregator, self._weights = aggregator, weights

    def stream(self, workers: Collection[str], faults: Collection[str]) -> Stream:
        """The next update from rows that come by blocks of columns: for `aggregation` of `step`.

        Args:
            workers: whose rows.
            faults: workers that have proved faulty so far.
        """
        d, weights = self._d, self.weights_of(workers, faults)
        return Stream(
            self._aggregator,
            len(workers),
            d,
            self.reference,
            faults=len(faults),
            into=self._spare,
            weights=weights,
        )

    def rate(self, round: int) -> float:
        """The learning rate of a round."""
        return self._stepper.rate(round, self._rounds)

    def move_along(self, round: int, row: Tensor, step: float, out: Tensor) -> None:
        """Write x - step * row into `out`, as long as the parameters x: of a fragment its part alone moves.

        Buffers are those of the model as it is.
        """
        d, row = self._d, row.to(out.dtype)
        out.copy_(self.parameters)
        if self.fragments is None:
            out[:d].sub_(row, alpha=step)
        else:
            slices = self.fragments.slices[self.fragments.of(round)]
            put(out, slices, take(out, slices).sub_(row, alpha=step))

    def why_broken(self, workers: Collection[str], faults: Collection[str]) -> str | None:
        """Why the rule promises nothing for the rows of these workers; None where it does."""
        weights = self.weights_of(workers, faults)
        try:
            self._aggregator.among(range(len(workers)), len(faults), weights)
        except AggregationError as error:
            return str(error)
        return None

    def weights_of(self, workers: Collection[str], faults: Collection[str]) -> list[float] | None:
        """The weights of the rows of these workers, in the order of their names, then of those at fault.

        None where all weigh the same.
        """
        return self._weights_in_order((*sorted(workers), *sorted(faults)))

    def _weights_in_order(self, workers: Iterable[str]) -> list[float] | None:
        if self._weights is None:
            return None
        least = min(self._weights.values())  # of a worker that has left meanwhile
        return [self._weights.get(worker, least) for worker in workers]

    def step(
        self,
        round: int,
        rows: Mapping[str, Tensor],
        faults: Mapping[str, str],
        *,
        mix: tuple[Mixing, ...] = (),
        measure: Measure | None = None,
        aggregation: Aggregation | None = None,
        fresh: Collection[str] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Step:
        """Aggregate the rows of a round and move the parameters.

        Args:
            round: for the learning rate and for the randomness of mixings.
            rows: worker to (d,); not written to, not kept.
            faults: workers that the caller proved Byzantine in this round, and why. Each spends one of
                the f of the rule.
            mix: mixings of this round alone, before those of the rule.
            measure: measures these rows, in the order of their names, where that need not be done anew.
            aggregation: makes the update in place of the rule, from what it knows of the rows.
            fresh: workers whose rows no step before has seen; None for all of them.
            buffers: worker to (b,), of those who pushed for this round; None leaves them as they are.

        Raises:
            AggregationError: the guarantee of the rule does not hold for these rows, or the step would
                leave the finite numbers. Nothing has changed then.
        """
        workers = sorted(rows)
        if not workers:
            raise AggregationError(f"No push of round {round} is left to aggregate.")
        start = time.perf_counter()
        with every_core(), time_parts() as parts:
            if aggregation is not None:
                aggregate = aggregation()
            else:
                vectors = [rows[worker] for worker in workers]
                weights = self.weights_of(workers, faults)
                aggregate = self._aggregate(round, vectors, len(faults), mix, measure, weights)
        length = self._checked_norm(round, aggregate)
        aggregated = time.perf_counter()
        if "gram" in parts:
            parts["rule"] = aggregated - start - parts["gram"]
        lr = self.rate(round)
        vector = _without_rows(aggregate.vector.detach().to(torch.float32), rows)
        dropped = {workers[i] for i in aggregate.dropped}
        kept = {name: row for name, row in (buffers or {}).items() if name not in dropped}
        self._move(round, vector, length, lr, kept)
        self._keep_reference(round, vector)
        if self.average is not None:
            learned = self._batch * _count_learned(aggregate, workers, fresh)
            self.average.update(self.parameters[: self._d], learned)
        seconds = {"aggregate": aggregated - start, "step": time.perf_counter() - aggregated}
        return _describe(aggregate, workers, faults, length, lr, seconds, parts)

    def scored(self, scores: Mapping[str, float]) -> None:
        """Take the scores of an evaluation, by name: a schedule of a program may depend on them."""
        self._stepper.scored(scores)

    @property
    def version(self) -> Version:
        """The parameters, which are not changed as long as somebody holds this."""
        return self._versions.version

    def payload(self) -> memoryview:
        """The parameters as little-endian float32; never changed as long as somebody holds it."""
        return self._versions.payload

    def digest(self) -> str:
        """BLAKE2b-128 of `payload`, in hexadecimal."""
        return hashlib.blake2b(self.payload(), digest_size=16).hexdigest()

    def state(self) -> dict[str, Any]:
        """All that later steps depend on; the tensors are views that the next step changes."""
        return {
            "parameters": self.parameters,
            "reference": self.reference,
            "optimizer": self._stepper.state(),
            "average": None if self.average is None else self.average.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with the same bits.

        Raises:
            ValueError: it is of another model, or of a run with an average where this has none.
        """
        if state["parameters"].shape != self.parameters.shape:
            expected, found = tuple(self.parameters.shape), tuple(state["parameters"].shape)
            raise ValueError(f"The parameters should have the shape {expected}. Found {found}.")
        if (state["average"] is None) != (self.average is None):
            has = "no" if state["average"] is None else "an"
            raise ValueError(f"A state should have an average where the run has one. Found {has} average.")
        if self.average is not None:
            self.average.restore(state["average"])
        self._versions.publish(self._versions.draft().copy_(state["parameters"]))
        reference, device = state["reference"], self.parameters.device
        self.reference = None if reference is None else reference.to(device, copy=True)
        self._stepper.restore(state["optimizer"])

    def _aggregate(
        self,
        round: int,
        vectors: Sequence[Tensor],
        faults: int,
        mix: tuple[Mixing, ...],
        measure: Measure | None,
        weights: Sequence[float] | None,
    ) -> Aggregate:
        rule = replace(self._aggregator, mix=(*mix, *self._aggregator.mix)) if mix else self._aggregator
        reference = self._reference_of(round)
        return rule(
            vectors,
            reference,
            torch.Generator().manual_seed(_derive_seed(self._seed, round)),
            faults=faults,
            measured=None if measure is None else lambda: measure(reference),
            into=None if self.fragments is not None else self._spare,
            blocks=self._blocks,
            weights=weights,
        )

    def _reference_of(self, round: int) -> Tensor | None:
        """The last aggregate, as far as the rows of a round go."""
        if self.fragments is None or self.reference is None:
            return self.reference
        return take(self.reference, self.fragments.slices[self.fragments.of(round)])

    def _checked_norm(self, round: int, aggregate: Aggregate) -> float:
        """The Euclidean norm of an aggregate that is one finite vector (d,)."""
        vector, d = aggregate.vector, self._d
        if self.fragments is not None:
            d = self.fragments.numels[self.fragments.of(round)]
        if vector.shape != (d,):
            found = f"Found shape {tuple(vector.shape)}."
            raise TypeError(f"{self._aggregator.rule!r} should return a vector of {d} entries. {found}")
        length = norm(vector)
        if length is None:
            raise AggregationError(f"The update of {shown(self._aggregator.rule)} is not finite.")
        return length

    def _move(
        self, round: int, vector: Tensor, length: float, lr: float, buffers: Mapping[str, Tensor]
    ) -> None:
        """Step the optimizer; the new parameters are written beside the current ones."""
        draft, d = self._versions.draft(), self._d
        try:
            if isinstance(self._stepper, FragmentSteppers):
                assert self.fragments is not None
                fragment = self.fragments.of(round)
                self._stepper.step(fragment, self.parameters[:d], vector, length, lr, draft[:d])
            else:
                self._stepper.step(self.parameters[:d], vector, length, lr, draft[:d])
        except AggregationError:
            self._versions.discard(draft)
            raise
        if self.buffers:
            weights = self._weights_in_order(buffers)
            draft[d:] = median_of([*buffers.values()], weights) if buffers else self.parameters[d:]
        self._versions.publish(draft)

    def _keep_reference(self, round: int, vector: Tensor) -> None:
        """Keep this aggregate as the reference of the next; the memory of the last one is used again."""
        if self.fragments is not None:
            if self.reference is None:
                self.reference = torch.zeros_like(self.parameters)
            put(self.reference, self.fragments.slices[self.fragments.of(round)], vector)
            return
        before, self.reference = self.reference, vector
        if vector.data_ptr() == self._spare.data_ptr():
            self._spare = torch.empty_like(vector) if before is None else before


def median_of(vectors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The median of each number of vectors (b,), always one of theirs: the lower one of two.

    With weights it is the least number with half of the weight at or below it.
    """
    stacked = torch.stack([*vectors])
    if weights is None:
        return stacked.median(dim=0).values
    order = stacked.sort(dim=0, stable=True)
    below = torch.tensor(weights, dtype=torch.float64, device=stacked.device)[order.indices].cumsum(dim=0)
    place = (below < below[-1] / 2 * (1 - HALF)).sum(dim=0, keepdim=True)
    return order.values.gather(0, place).squeeze(0)


def _count_learned(aggregate: Aggregate, workers: Sequence[str], fresh: Collection[str] | None) -> float:
    """The effective number of new rows that a step has learned from."""
    new = [
        i
        for i, worker in enumerate(workers)
        if i not in aggregate.dropped and (fresh is None or worker in fresh)
    ]
    if aggregate.weights is None or not new:
        return len(new)
    return samples(1, len(new), aggregate._replace(weights=aggregate.weights[new]).effective)


def _without_rows(vector: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """The same vector in memory of its own: rows are overwritten in the next round."""
    memory = {row.untyped_storage().data_ptr() for row in rows.values()}
    return vector.clone() if vector.untyped_storage().data_ptr() in memory else vector


def _derive_seed(seed: int, round: int) -> int:
    """A seed for one round, unlike that of any other round or seed."""
    text = f"server/{seed}/{round}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _describe(
    aggregate: Aggregate,
    workers: Sequence[str],
    faults: Mapping[str, str],
    length: float,
    lr: float,
    seconds: dict[str, float],
    parts: dict[str, float],
) -> Step:
    weights = None if aggregate.weights is None else _by_name(workers, aggregate.weights)
    return Step(
        norm=length,
        weights=weights,
        reference_weight=aggregate.reference_weight,
        dropped=dict(faults) | {workers[i]: "not finite" for i in aggregate.dropped},
        details={name: _by_name(workers, values) for name, values in aggregate.details.items()},
        lr=lr,
        seconds=seconds,
        parts=parts,
        effective=aggregate.effective,
        spread=aggregate.spread,
    )


def _by_name(workers: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(workers, values.tolist(), strict=True))
