"""MoNNA: the mean of the rows nearest to a trusted vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from varangian.aggregators.base import (
    RULES,
    check_f,
    honest_majority,
    is_count,
    told_enough,
)
from varangian.aggregators.errors import AggregationError
from varangian.aggregators.gram import Gram, mean_weights


@RULES.register("monna")
@dataclass(frozen=True, kw_only=True)
class MoNNA:
    """MoNNA: the mean of the n - f rows nearest to a trusted vector; ties go to the lower row.

    "Robust Collaborative Learning with Linear Gradient Overhead" (Farhadkhani et al., 2023), where every
    worker trusts its own vector. A server has none and trusts the last aggregate instead; in the first
    round that is zero, and the rule is comparative gradient elimination.
    """

    f: int
    pivot: int | None = None
    """The row to trust in place of the last aggregate, counted from 0 among the rows given. Only for use as
    a library, where no row can be missing, and not behind a mixing that moves rows, as bucketing. ByzFL and
    ByzPy trust row 0."""

    def __post_init__(self) -> None:
        check_f(self.f)
        if self.pivot is not None and not is_count(self.pivot):
            raise ValueError(f"`pivot` should be a row, counted from 0. Found {self.pivot}.")

    def requires(self, n: int, f: int) -> str | None:
        if self.pivot is not None and self.pivot >= n:
            return f"it needs row {self.pivot}, counted from 0, and n is {n}"
        return honest_majority(n, self.f) or told_enough(self, f)

    @property
    def uses_reference(self) -> bool:
        return self.pivot is None

    @property
    def by_place(self) -> bool:
        return self.pivot is not None

    def among(self, kept: Sequence[int]) -> Self:
        if self.pivot is None:
            return self
        if self.pivot not in kept:
            raise AggregationError(f"{self!r}: it needs row {self.pivot}, which is not a valid one.")
        return dataclasses.replace(self, pivot=kept.index(self.pivot))

    def __call__(self, gram: Gram) -> Tensor:
        m = len(gram)
        centered = self.pivot is None
        distances = gram.centered.numpy().diagonal() if centered else gram.sqdist.numpy()[self.pivot]
        return mean_weights(m, distances.argsort(kind="stable")[: m - self.f])
