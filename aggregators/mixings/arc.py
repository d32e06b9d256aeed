"""ARC, adaptive robust clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_f, honest_majority, light_minority, told_enough
from varangian.aggregators.gram import Gram, factors
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.shares import CRUMB, Shares


@MIXINGS.register("arc")
@dataclass(frozen=True, kw_only=True)
class ARC:
    """Adaptive robust clipping: the k longest rows are scaled to the length of the next one.

    "Adaptive Gradient Clipping for Robust Federated Learning" (Allouah et al., 2025): k = floor(2 f (n - f)
    / n), and lengths are from the origin. Unlike a fixed radius it keeps a rule robust, with the
    coefficient kappa + 2 f / (n - 2 f). With weights the longest rows of weight 2 B (1 - B) are scaled, to
    the length of the first that goes beyond; B is what the f heaviest rows weigh.
    """

    f: int

    in_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def carried(self, n: int, f: int, kappa: float) -> float | None:
        """Kappa + 2 f / (n - 2 f), of the paper; not known where it was told of more than f rows."""
        return kappa + 2 * f / (n - 2 * f) if f == self.f else None

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, self.f) or told_enough(self, f)

    def weighted_carried(self, shares: Shares, f: int, kappa: float) -> float | None:
        """Kappa + 2 B / (1 - 2 B) with the weight budget B: that of rows split into equal copies."""
        budget = shares.budget(f)
        return kappa + 2 * budget / (1 - 2 * budget) if f == self.f else None

    def outputs(self, n: int) -> int:
        return n

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        m = len(gram)
        clipped = 2 * self.f * (m - self.f) // m
        lengths = gram.norms.numpy()
        if gram.shares is not None:
            longest = _longest_left(lengths, gram.shares, self.f)
            return torch.from_numpy(np.diag(factors(lengths, longest)))
        return torch.from_numpy(np.diag(factors(lengths, np.sort(lengths)[m - clipped - 1])))


def _longest_left(lengths: Array, shares: Shares, f: int) -> float:
    """The length that rows are scaled to."""
    budget, order = shares.budget(f), np.argsort(-lengths, kind="stable")
    beyond = np.cumsum(shares.p[order]) > 2 * budget * (1 - budget) + CRUMB
    return float(lengths[order[beyond.argmax()]])
