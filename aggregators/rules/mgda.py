"""MGDA, the multiple-gradient descent algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.aggregators.base import RULES
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.simplex import nearest_to_origin


@RULES.register("mgda")
@dataclass(frozen=True, kw_only=True)
class MGDA:
    """MGDA: the shortest vector in the convex hull of the rows, a descent direction for every objective.

    "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization" (Desideri, 2012), and
    "Multi-Task Learning as Multi-Objective Optimization" (Sener and Koltun, 2018), which solves for it by
    Frank-Wolfe steps; here an active set method finds it to rounding. Made for honest workers with
    different objectives: it is not robust, as one Byzantine row of zeros stops all progress.
    """

    robust: ClassVar[bool] = False

    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        return torch.from_numpy(nearest_to_origin(gram.inner.numpy()))
