"""Spectral filtering: the filter of DnC (divide and conquer) on all columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, check_f, check_positive, told_enough
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.algebra import Array
from varangian.aggregators.numeric.spectrum import leading


@RULES.register("spectral_filter")
@dataclass(frozen=True, kw_only=True)
class SpectralFilter:
    """Spectral filter: the mean without the ceil(c f) rows farthest out along the top eigenvector.

    The filter of DnC, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning" (Shejwalkar and Houmansadr, 2021). DnC takes a new random sample of the columns in
    each iteration and keeps the rows that every iteration kept, so it may remove more than c f. With the
    Gram matrix all columns cost no more than a sample: nothing is random here, a pass removes exactly c f
    rows, and the next one starts from the rows that are left.
    """

    f: int
    c: float = 1.0
    """Rows to remove in a pass, divided by f."""
    iterations: int = 1
    """Passes; together they should remove at least f rows."""

    def __post_init__(self) -> None:
        check_f(self.f)
        check_positive("c", self.c)
        check_count("iterations", self.iterations)

    @property
    def robust(self) -> bool:
        return self.c * self.iterations >= 1

    def requires(self, n: int, f: int) -> str | None:
        removed = self.iterations * self._per_pass
        if n < removed + self.f + 1:
            least = removed + self.f + 1
            return f"it needs n >= {least} to remove {removed} rows for f = {self.f}, and n is {n}"
        return told_enough(self, f)

    @property
    def _per_pass(self) -> int:
        return math.ceil(round(self.c * self.f, 9))

    def __call__(self, gram: Gram) -> Tensor:
        inner, kept = gram.relative.numpy(), np.ones(len(gram), dtype=bool)
        for _ in range(self.iterations):
            shares = kept / kept.sum()
            _, places = leading(inner, shares)
            for _ in range(self._per_pass):
                kept[_farthest(places, kept, float(shares @ places))] = False
        return torch.from_numpy(kept / kept.sum())


def _farthest(places: Array, kept: NDArray[np.bool_], mean: float) -> int:
    """The row farthest from the mean of the pass among those still kept; ties go to the higher row.

    It is the least or the greatest, and their midpoint tells which: squared distances to a mean that one
    huge row has moved far away would all round to the same number.
    """
    least, most = np.where(kept, places, np.inf), np.where(kept, places, -np.inf)
    low, high = int(least.argmin()), int(most.argmax())
    above = float(least[low] / 2 + most[high] / 2) - mean
    if abs(above) <= 1e-12 * float(most[high] - least[low]):
        return max(low, high)
    return high if above > 0 else low
