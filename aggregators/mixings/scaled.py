"""Rows multiplied by factors, for ages in asynchronous rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.aggregators.errors import AggregationError
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.shares import Shares


@dataclass(frozen=True)
class Scaled:
    """Row i is multiplied by factor i: y_i = s_i x_i.

    Made for one round, by the program: no configuration knows the factors, as those of ages. The rule sees
    n rows as before and is as robust.
    """

    factors: tuple[float, ...]

    in_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(0 <= factor <= 1 for factor in self.factors):
            raise ValueError(f"`factors` should be between 0 and 1. Found {self.factors}.")

    def requires(self, n: int, f: int) -> None:
        """No condition: every row stays in its place."""

    def weighted_requires(self, shares: Shares, f: int) -> None:
        """No condition, and nothing else: a row is scaled whatever it weighs."""

    def outputs(self, n: int) -> int:
        return n

    def among(self, kept: Sequence[int]) -> Scaled:
        """The factors of the rows that are left."""
        if kept and max(kept) >= len(self.factors):
            raise self._error(len(kept))
        return Scaled(tuple(self.factors[i] for i in kept))

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        if len(gram) != len(self.factors):
            raise self._error(len(gram))
        return torch.diag(torch.tensor(self.factors, dtype=torch.float64, device="cpu"))

    def _error(self, rows: int) -> AggregationError:
        found = f"Found {len(self.factors)}."
        return AggregationError(
            f"There should be a factor for each of the {rows} rows that are left. {found}"
        )
