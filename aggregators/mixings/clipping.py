"""Clipping at a fixed radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_positive
from varangian.aggregators.gram import Gram, factors
from varangian.aggregators.numeric.shares import Shares


@MIXINGS.register("clipping")
@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Clipping: rows longer than `radius`, from the origin or the last aggregate, are scaled to it.

    A fixed radius bounds what one row can do, but makes no rule (f, kappa)-robust ("Adaptive Gradient
    Clipping for Robust Federated Learning", Allouah et al., 2025).
    """

    radius: float
    """In the units of the rows."""
    about: Literal["origin", "reference"] = "origin"

    in_place: ClassVar[bool] = True

    @property
    def uses_reference(self) -> bool:
        return self.about == "reference"

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)

    def requires(self, n: int, f: int) -> None:
        """No condition: every row stays in its place."""

    def weighted_requires(self, shares: Shares, f: int) -> None:
        """No condition, and nothing else: a row is clipped whatever it weighs."""

    def outputs(self, n: int) -> int:
        return n

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        squares = (gram.inner if self.about == "origin" else gram.centered).numpy().diagonal()
        kept = factors(np.sqrt(np.maximum(squares, 0)), self.radius)
        if self.about == "origin":
            return torch.from_numpy(np.diag(kept))
        return torch.from_numpy(np.column_stack([np.diag(kept), 1 - kept]))
