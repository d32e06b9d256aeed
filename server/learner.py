"""The model's side of a round: rows in, one step of the optimizer, and who was believed.

d  parameters     n  rows of the round, in the order of their workers' names
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varangian.aggregators import Aggregate, AggregationError, Aggregator
from varangian.aggregators.incremental import Incremental
from varangian.server.optimizer import Sgd


@dataclass(frozen=True)
class Step:
    """What one round did to the model."""

    norm: float
    """Euclidean norm of the aggregate."""
    weights: dict[str, float] | None
    """The coefficient of each worker's row in the aggregate; None for a rule without weights."""
    reference_weight: float
    """The coefficient of the last aggregate."""
    dropped: dict[str, str]
    """Who took no part because of what it sent, and why."""
    details: dict[str, dict[str, float]]
    """What else the rule says of each worker, by name of the value."""
    lr: float
    seconds: dict[str, float]
    """By phase: aggregate, step."""
    effective: float | None = None
    """How many workers, equally believed, would average as much; None for a rule without weights."""
    spread: float | None = None
    """Mean squared distance of the rows to the aggregate; None where no distance was measured."""


@dataclass(frozen=True)
class Begun:
    """An aggregate that is begun before its rows are complete, and whose place in it is which."""

    work: Incremental
    workers: tuple[str, ...]
    """Everyone who may push, sorted."""

    @property
    def lost(self) -> bool:
        return self.work.lost

    def worth(self, columns: int) -> bool:
        """Whether there is something to do when so many columns have come."""
        return not self.work.lost and self.work.until(columns) > self.work.columns

    def advance(self, rows: Mapping[str, Tensor], columns: int) -> None:
        """Go on with the columns that have come of these rows; the others will not come."""
        self.work.advance(self._placed(rows), columns)

    def finish(self, rows: Mapping[str, Tensor], rng: torch.Generator, faults: int) -> Aggregate:
        present = [i for i, worker in enumerate(self.workers) if worker in rows]
        return self.work.finish(self._placed(rows), present, rng, faults)

    def _placed(self, rows: Mapping[str, Tensor]) -> list[Tensor | None]:
        return [rows.get(worker) for worker in self.workers]


class Learner:
    """The parameters, the rule that aggregates and the optimizer that steps.

    A step depends on the parameters, the optimizer's state, the last aggregate, the seed, the round and the
    rows by name; not on the order in which rows came.
    """

    def __init__(
        self, parameters: Tensor, aggregator: Aggregator, optimizer: Sgd, *, rounds: int, seed: int
    ) -> None:
        self._point = nn.Parameter(parameters.detach().to(torch.float32, copy=True).contiguous())
        self._aggregator = aggregator
        self._optimizer = optimizer
        self._sgd = optimizer.build(self._point)
        self._rounds = rounds
        self._seed = seed
        self.reference: Tensor | None = None
        """The last aggregate (d,), from which the next rows are measured."""

    @property
    def parameters(self) -> Tensor:
        """(d,) float32; a view that the next step changes, not to be written to."""
        return self._point.detach()

    def begin(self, workers: Sequence[str], faults: int) -> Begun:
        """The next aggregate, to be gone on with while rows of these workers arrive.

        Args:
            workers: everyone who may push.
            faults: how many of them have proved faulty so far.
        """
        names, d = tuple(sorted(workers)), self._point.numel()
        work = Incremental(self._aggregator, len(names), d, self.reference, faults=faults)
        return Begun(work, names)

    def step(
        self,
        round: int,
        rows: Mapping[str, Tensor],
        faults: Mapping[str, str],
        begun: Begun | None = None,
    ) -> Step:
        """Aggregate the rows of a round and move the parameters.

        Args:
            round: for the learning rate and for the randomness of mixings.
            rows: worker to (d,); not written to, not kept.
            faults: workers that the caller proved Byzantine in this round, and why. Each spends one of
                the f of the rule.
            begun: what `begin` returned since the last step, if anything; it changes no bit.

        Raises:
            AggregationError: the guarantee of the rule does not hold for these rows, or the step would
                leave the finite numbers. Nothing has changed then.
        """
        workers = sorted(rows)
        if not workers:
            raise AggregationError(f"No push of round {round} is left to aggregate.")
        start = time.perf_counter()
        rng = torch.Generator().manual_seed(_derived(self._seed, round))
        begun = begun or self.begin(workers, len(faults))
        aggregate = begun.finish(rows, rng, len(faults))
        norm = self._checked_norm(aggregate)
        aggregated = time.perf_counter()
        lr = self._optimizer.rate(round, self._rounds)
        vector = _own(aggregate.vector.detach().to(torch.float32), rows)
        self._move(vector, lr)
        self.reference = vector
        seconds = {"aggregate": aggregated - start, "step": time.perf_counter() - aggregated}
        return _described(aggregate, workers, faults, norm, lr, seconds)

    def payload(self) -> bytes:
        """The parameters as little-endian float32."""
        return self.parameters.cpu().numpy().astype("<f4", copy=False).tobytes()

    def digest(self) -> str:
        """BLAKE2b-128 of `payload`, in hexadecimal."""
        return hashlib.blake2b(self.payload(), digest_size=16).hexdigest()

    def _checked_norm(self, aggregate: Aggregate) -> float:
        vector, d = aggregate.vector, self._point.numel()
        if vector.shape != (d,):
            found = f"Found shape {tuple(vector.shape)}."
            raise TypeError(f"{self._aggregator.rule!r} should return a vector of {d} entries. {found}")
        norm = _norm(vector)
        if norm is None:
            raise AggregationError(f"The update of {self._aggregator.rule!r} is not finite.")
        return norm

    def _move(self, vector: Tensor, lr: float) -> None:
        state = self._sgd.state[self._point]
        before = self.parameters.clone()
        # Older versions of torch keep a None where there is no momentum.
        state_before = {key: value.clone() for key, value in state.items() if value is not None}
        self._sgd.param_groups[0]["lr"] = lr
        self._point.grad = vector
        self._sgd.step()
        self._point.grad = None
        if _norm(self.parameters) is None:
            self.parameters.copy_(before)
            state.clear()
            state.update(state_before)
            raise AggregationError("The step would make the parameters infinite.")


def _own(vector: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """The vector, not in the memory of a row: rows are overwritten in the next round."""
    memory = {row.untyped_storage().data_ptr() for row in rows.values()}
    return vector.clone() if vector.untyped_storage().data_ptr() in memory else vector


def _norm(vector: Tensor) -> float | None:
    """Euclidean norm; None when an entry is not finite. In float64 no finite float32 vector overflows."""
    norm = torch.linalg.vector_norm(vector, dtype=torch.float64).item()
    return norm if norm < float("inf") else None


def _derived(seed: int, round: int) -> int:
    """A seed for one round, unlike that of any other round or seed."""
    text = f"server/{seed}/{round}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _described(
    aggregate: Aggregate,
    workers: Sequence[str],
    faults: Mapping[str, str],
    norm: float,
    lr: float,
    seconds: dict[str, float],
) -> Step:
    weights = None if aggregate.weights is None else _named(workers, aggregate.weights)
    return Step(
        norm=norm,
        weights=weights,
        reference_weight=aggregate.reference_weight,
        dropped=dict(faults) | {workers[i]: "not finite" for i in aggregate.dropped},
        details={name: _named(workers, values) for name, values in aggregate.details.items()},
        lr=lr,
        seconds=seconds,
        effective=aggregate.effective,
        spread=aggregate.spread,
    )


def _named(workers: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(workers, values.tolist(), strict=True))
