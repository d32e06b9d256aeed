"""Nearest-neighbour mixing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.algebra import Array


@MIXINGS.register("nnm")
@dataclass(frozen=True, kw_only=True)
class NNM:
    """NNM: each row becomes the mean of its n - f nearest rows, itself among them; the lower row wins ties.

    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity" (Allouah et al., 2023).
    """

    f: int

    in_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def carried(self, n: int, f: int, kappa: float) -> float:
        """8 f / (n - f) (kappa + 1), of the paper, and never more than (3 + sqrt 8) (kappa + 1).

        The second needs no more than n - f neighbours, so that it holds for a mixing that was told of more
        than f rows, too. Of a row at distance a from the mean over S, of variance v, the nearest rows have
        a mean square distance no larger than all of S: v + a^2. So their mean is at most sqrt(v + a^2) + a
        from that of S; the square of this is at most (3 + sqrt 8) v on average over S.
        """
        always = 3 + math.sqrt(8)
        return (min(8 * f / (n - f), always) if f == self.f else always) * (kappa + 1)

    def outputs(self, n: int) -> int:
        return n

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        kept = len(gram) - self.f
        return torch.from_numpy(_nearest(gram.sqdist.numpy(), kept) / kept)


def _nearest(distances: Array, count: int) -> NDArray[np.bool_]:
    """The `count` nearest rows of each row: (m, m) bool."""
    farthest = np.partition(distances, count - 1, axis=1)[:, count - 1 : count]
    near = distances <= farthest
    if int(near.sum()) > count * len(near):  # ties with the farthest
        nearer = distances < farthest
        places = count - nearer.sum(axis=1, keepdims=True)
        near = nearer | (near & ((near & ~nearer).cumsum(axis=1) <= places))
    return near
