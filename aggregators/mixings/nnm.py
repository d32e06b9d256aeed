"""Nearest-neighbour mixing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_f, honest_majority, light_minority, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.shares import Shares, filled

ALWAYS = 3 + math.sqrt(8)
"""What one more than the coefficient of the rule after it is multiplied by at most."""


@MIXINGS.register("nnm")
@dataclass(frozen=True, kw_only=True)
class NNM:
    """NNM: each row becomes the mean of its n - f nearest rows, itself among them; the lower row wins ties.

    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity" (Allouah et al., 2023). With
    weights it is the weighted mean of the nearest rows of weight 1 - B, the last of them in part; B is what
    the f heaviest rows weigh.
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
        return (min(8 * f / (n - f), ALWAYS) if f == self.f else ALWAYS) * (kappa + 1)

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, self.f) or told_enough(self, f)

    def weighted_carried(self, shares: Shares, f: int, kappa: float) -> float:
        """8 B / (1 - B) (kappa + 1) with the weight budget B, and never more than (3 + sqrt 8) (kappa + 1).

        Both are those of rows split into equal copies, all of which become the same point.
        """
        budget = shares.budget(f)
        return (min(8 * budget / (1 - budget), ALWAYS) if f == self.f else ALWAYS) * (kappa + 1)

    def outputs(self, n: int) -> int:
        return n

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        if gram.shares is not None:
            return torch.from_numpy(_nearest_weight(gram.sqdist.numpy(), gram.shares, self.f))
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


def _nearest_weight(distances: Array, shares: Shares, f: int) -> Array:
    """Weights of the rows nearest to each row: (m, m), each row of sum 1."""
    order = np.argsort(distances, axis=1, kind="stable")
    taken = filled(shares.p[order], 1 - shares.budget(f))
    mixing = np.zeros_like(distances)
    np.put_along_axis(mixing, order, taken / taken.sum(axis=1, keepdims=True), axis=1)
    return mixing
