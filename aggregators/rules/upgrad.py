"""UPGrad: the mean of the rows after none conflicts with another."""

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
    """The mean of the rows, each first moved as little as makes it conflict with no row.

    "Jacobian Descent for Multi-Objective Optimization" (Quinton and Rey, 2024): each row is projected on
    the dual cone of all rows. Where no two rows have a negative inner product this is the mean. For workers
    who are honest and disagree: one Byzantine row may turn or lengthen the update at will.
    """

    robust: ClassVar[bool] = False

    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        inner = gram.inner.numpy()
        steps = to_dual_cone(inner, inner, gram.basis.precision)
        return torch.from_numpy(1 / len(gram) + steps.mean(axis=0))
