"""The server's rule in the hands of an attacker: asked before anything is sent.

n  rows     H  of them honest     k  copies of the attackers' vector     d  parameters
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from operator import mul
from statistics import fmean
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators import Aggregate, Aggregator, Gram, Weighting
from varangian.aggregators.answers import mixed, weights
from varangian.aggregators.base import is_columnwise, is_whole
from varangian.aggregators.blocks import columns_of
from varangian.aggregators.gram import ORIGIN
from varangian.aggregators.kernels import NotFinite
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.pipeline import shares_of
from varangian.aggregators.rows import Rows
from varangian.own_classes import is_own

DRAWS = 4
"""Draws of a random mixing over which an effect is averaged: an attacker does not know the server's."""
_UNUSED = torch.Generator()
"""The generator where there is no mixing, hence no randomness."""


class Effect(NamedTuple):
    """The effect of the attackers' vectors on the update F, next to the mean of the honest vectors."""

    deviation: float
    """|F - mean|^2; with weights this is the weighted mean of the honest."""
    inner: float
    """<F, mean>."""
    honest: float
    """|mean|^2."""
    mass: float | None
    """Weight of the attackers' vectors in F; None for a rule without weights."""


UNKNOWN = Effect(math.nan, math.nan, math.nan, None)
"""The effect where the honest vectors are not finite, as in a run that has diverged."""


@dataclass(frozen=True, eq=False)
class LiveRule:
    """The server's rule, as an attacker who knows it can ask it.

    The answers are those of the server but for what an attacker cannot know: which vectors arrive in time,
    the rounding of `wire.dtype`, the randomness of a mixing, and the last aggregate.
    """

    aggregator: Aggregator
    f: int
    """The number of Byzantine workers that was declared to the server."""
    reference: Tensor | None = None
    """The last aggregate (d,), from which some rules measure, as the attacker assumes it. None is the mean
    of the honest rows: with momentum the last aggregate of a robust rule is near it."""
    blocks: tuple[int, ...] | None = None
    """Sizes of the parameter tensors, for a rule that is applied to each by itself."""
    weights: tuple[float, ...] | None = None
    """What the rows of a round weigh, those of the attackers last; None where all weigh the same."""

    def __call__(
        self, rows: Tensor, rng: torch.Generator | None = None, *, ranks: Sequence[int] | None = None
    ) -> Tensor:
        """The update (d,) from rows (n, d), the honest first; the last f are taken for the attackers'.

        Args:
            rows: of one round.
            rng: randomness of the mixings; by default always the same.
            ranks: of the attackers whose rows the last ones are, where some send nothing.

        Raises:
            AggregationError: the rule does not take these rows, or is of the user and fails.
        """
        honest = rows[: max(1, len(rows) - self.f)]
        reference = self._reference(honest)
        weights, rng = self.weights_of(len(rows), ranks), rng or _draw(0)
        return self.aggregator(rows, reference, rng, blocks=self.blocks, weights=weights).vector

    def refuses(self, n: int) -> bool:
        """Whether the rule takes no round of n rows."""
        return self.aggregator.requires(n, weights=self.weights_of(n)) is not None

    def weights_of(self, n: int, ranks: Sequence[int] | None = None) -> tuple[float, ...] | None:
        """What n rows weigh; where there are more than in the round, the others have the least.

        Args:
            n: the honest rows, and those of attackers.
            ranks: of the attackers whose rows these are; by default of the first ones.
        """
        known = self.weights
        if known is None or n == len(known):
            return known
        honest = n if ranks is None else n - len(ranks)
        places = (*range(honest), *(honest + rank for rank in ranks or ()))
        return tuple(known[place] if place < len(known) else min(known) for place in places)

    def mean(self, honest: Tensor) -> Tensor:
        """The mean of the honest rows by what they weigh: what the server would take without attackers."""
        weights = self.weights_of(len(honest))
        if weights is None or len({*weights}) == 1:
            return honest.mean(dim=0)
        share = torch.tensor(weights, dtype=torch.float64, device=honest.device)
        return ((share / share.sum()) @ honest.double()).to(honest)

    def along(
        self, honest: Tensor, base: Tensor, direction: Tensor, copies: int
    ) -> Callable[[float], Effect]:
        """Prepare to ask for the effect of vectors on a line.

        Args:
            honest: (H, d), in the order of workers.
            base: (d,), where the line begins.
            direction: (d,) of the line.
            copies: how many attackers send the same vector.

        Returns:
            The effect of `copies` vectors base + t direction, as a function of t. It raises an
            AggregationError if the rule does not take these rows, or is of the user and fails.

        Raises:
            AggregationError: the rule does not take so many rows.
        """
        reference = self._reference(honest)
        if not bool(reference.isfinite().all()):
            return lambda t: UNKNOWN
        weights = self.weights_of(len(honest) + copies)
        if not self.aggregator.splits:
            return Probe(self.aggregator, honest, reference, (base, direction), copies, weights)
        single = replace(self.aggregator, per_block=False)
        columns = columns_of(self.blocks, honest.shape[1])
        return BlockProbe(
            [
                Probe(single, honest[:, c], reference[c], (base[c], direction[c]), copies, weights)
                for c in columns
            ],
            [(c.stop - c.start) / honest.shape[1] for c in columns],
        )

    def _reference(self, honest: Tensor) -> Tensor:
        return self.mean(honest) if self.reference is None else self.reference


class Probe:
    """The effect of `copies` vectors base + t direction on the update, as a function of t.

    A rule that weighs rows by their inner products is asked in their space: one Gram matrix of the honest
    rows and of two points of the line serves every t. Other rules are asked with the rows themselves.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        honest: Tensor,
        reference: Tensor,
        line: tuple[Tensor, Tensor],
        copies: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        n = len(honest) + copies
        self._shares = shares_of(weights, n)
        self._whole, self._now = aggregator, aggregator.among(range(n), 0, self._shares)
        p = np.ones(n) if self._shares is None else self._shares.p
        self._part = p[: len(honest)] / p[: len(honest)].sum()
        """Of each honest row in their mean."""
        self._honest, self._reference, self._copies = honest, reference, copies
        self._vectors = honest.unbind()
        self._base, self._direction = line
        by_rows = is_columnwise(self._now.rule) or is_whole(self._now.rule)
        self._ask = self._on_rows if by_rows else self._in_gram
        self._draws_nothing = not self._now.mix
        self._t = 0.0
        self._last: tuple[Aggregate | None, Effect] = (None, Effect(0.0, 0.0, 0.0, None))

    def __call__(self, t: float) -> Effect:
        """The effect of vectors at a finite t; not a number where the honest vectors are not finite.

        Raises:
            AggregationError: the rule does not take these rows, or is of the user and fails.
        """
        try:
            effects = [self._ask(t, rng) for rng in self._draws()]
        except NotFinite:  # the run has diverged
            return UNKNOWN
        return effects[0] if len(effects) == 1 else _averaged(effects)

    def _draws(self) -> Iterator[torch.Generator]:
        """Generators for the mixings: a single one where they draw nothing."""
        if self._draws_nothing:
            yield _UNUSED
            return
        for draw in range(DRAWS):
            rng = _draw(draw)
            before = rng.get_state()
            yield rng
            if torch.equal(before, rng.get_state()):
                # Whether a mixing of the user draws may depend on the vectors.
                self._draws_nothing = not any(map(is_own, self._now.mix))
                return

    def _in_gram(self, t: float, rng: torch.Generator) -> Effect:
        honest, products = len(self._honest), self._gram.basis.products.numpy()
        gram = self._gram.mixed(torch.from_numpy(self._rows_at(t))).weighted(self._shares)
        for mixing in self._now.mix:
            gram = gram.mixed(mixed(mixing, gram, rng))
        place = gram.combination(weights(cast("Weighting", self._now.rule), gram)).numpy()
        mean, origin, middle, square = self._landmarks
        apart, update = place - mean, place - origin
        return Effect(
            deviation=max(0.0, float(apart @ products @ apart)),
            inner=float(update @ products @ middle),
            honest=square,
            mass=float(place[honest : honest + 2].sum()),
        )

    @cached_property
    def _landmarks(self) -> tuple[Array, Array, Array, float]:
        """The mean of the honest rows, the origin, the way between them, and its squared length."""
        honest, products = len(self._honest), self._gram.basis.products.numpy()
        mean, origin = np.zeros(honest + 4), np.zeros(honest + 4)
        mean[:honest] = self._part
        origin[ORIGIN] = 1
        middle = mean - origin
        return mean, origin, middle, max(0.0, float(middle @ products @ middle))

    def _on_rows(self, t: float, rng: torch.Generator) -> Effect:
        torch.add(self._base, self._direction, alpha=t, out=self._sent)
        self._t = t
        answer = self._repeated(rng)
        if answer is not self._last[0]:
            self._last = answer, self._effect_of(answer.vector.double())
        return self._last[1]

    def _effect_of(self, update: Tensor) -> Effect:
        mean, square = self._mean
        return Effect(
            deviation=float((update - mean).square().sum()),
            inner=float(update @ mean),
            honest=square,
            mass=None,
        )

    @cached_property
    def _sent(self) -> Tensor:
        """The vector of the attackers, which is written anew for each t."""
        return torch.empty_like(torch.add(self._base, self._direction))

    @cached_property
    def _repeated(self) -> Callable[[torch.Generator], Aggregate]:
        rows = Rows((*self._vectors, *[self._sent] * self._copies))
        fixed = len(self._vectors)
        return self._whole.repeated(rows, fixed, self._reference, self._measured, self._shares)

    @cached_property
    def _mean(self) -> tuple[Tensor, float]:
        """The mean of the honest rows, and its squared length."""
        honest = self._honest.double()
        mean = honest.mean(dim=0)
        if self._shares is not None:
            mean = torch.from_numpy(self._part).to(honest.device) @ honest
        return mean, float(mean.square().sum())

    @cached_property
    def _unit(self) -> float:
        """The t of the second point: about as far from the first as honest rows are, to keep digits."""
        length = float(torch.linalg.vector_norm(self._direction, dtype=torch.float64))
        apart = self._honest - self._base
        wide = float(torch.linalg.vector_norm(apart, dim=1, dtype=torch.float64).max())
        return wide / length if wide > 0 and length > 0 else 1.0

    @cached_property
    def _gram(self) -> Gram:
        """The honest rows and two points of the line."""
        other = torch.add(self._base, self._direction, alpha=self._unit)
        rows = Rows((*self._vectors, self._base, other))
        if not getattr(self._now.rule, "from_origin", False):
            gram = Gram.of(rows, self._reference)
            with suppress(NotFinite):
                gram.basis.products.numpy()  # measured now: sums of long vectors overflow float32
                return gram
        return Gram.from_origin(rows, self._reference)

    def _rows_at(self, t: float) -> Array:
        """The rows of a round as combinations of those of the Gram matrix: (H + k, H + 2).

        It is part of a matrix that is written anew for each t.
        """
        honest, along = len(self._honest), t / self._unit
        rows = self._coefficients[:-2, :-2]
        rows[honest:, honest], rows[honest:, honest + 1] = 1 - along, along
        return rows

    @cached_property
    def _coefficients(self) -> Array:
        """The rows, the reference and zero as combinations of those of the Gram matrix."""
        honest, n = len(self._honest), len(self._honest) + self._copies
        found = np.zeros((n + 2, honest + 4))
        np.fill_diagonal(found[:honest, :honest], 1)
        found[[n, n + 1], [honest + 2, honest + 3]] = 1
        return found

    def _measured(self) -> Tensor:
        """The inner products of the rows at hand, as `Aggregator.__call__` takes them."""
        self._rows_at(self._t)
        wide = self._coefficients
        found = wide @ self._gram.basis.products.numpy() @ wide.T
        return torch.from_numpy((found + found.T) / 2)


class BlockProbe:
    """The effect of vectors on the update of a rule that is applied to each block by itself.

    Squared lengths and inner products of blocks add up to those of whole vectors.

    Args:
        probes: of each block.
        shares: of the columns that each has.
    """

    def __init__(self, probes: Sequence[Probe], shares: Sequence[float]) -> None:
        self._probes, self._shares = probes, shares

    def __call__(self, t: float) -> Effect:
        """The effect of vectors at a finite t; the mass is the mean over the columns of the update.

        Raises:
            AggregationError: the rule does not take these rows, or is of the user and fails.
        """
        deviation, inner, honest, mass = zip(*(probe(t) for probe in self._probes), strict=True)
        parts = None if None in mass else map(mul, mass, self._shares)
        return Effect(sum(deviation), sum(inner), sum(honest), None if parts is None else sum(parts))


def _averaged(effects: Sequence[Effect]) -> Effect:
    deviation, inner, honest, mass = zip(*effects, strict=True)
    return Effect(fmean(deviation), fmean(inner), fmean(honest), None if None in mass else fmean(mass))


def _draw(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
