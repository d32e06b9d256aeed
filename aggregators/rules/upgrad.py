"""UPGrad: the mean of rows that are projected on the dual cone of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.aggregators.base import RULES
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.simplex import to_dual_cone


@RULES.register("upgrad")
@dataclass(frozen=True, kw_only=True)
class UPGrad:
    """UPGrad: the mean of the rows, each projected on the vectors that conflict with no row.

    "Jacobian Descent for Multi-Objective Optimization" (Quinton and Rey, 2024): each row is projected on
    the dual cone of all rows. Where no two rows have a negative inner product this is the mean. Made for
    honest workers with different objectives: it is not robust, as one Byzantine row can turn or lengthen
    the update at will.
    """

    robust: ClassVar[bool] = False

    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        inner = gram.inner.numpy()
        steps = to_dual_cone(inner, inner, gram.basis.precision)
        return torch.from_numpy(1 / len(gram) + steps.mean(axis=0))
