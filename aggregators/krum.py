"""Krum and Multi-Krum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_f, told_enough
from varangian.aggregators.gram import Gram


@RULES.register("multi_krum", select="max")
@RULES.register("krum")
@dataclass(frozen=True, kw_only=True)
class Krum:
    """The mean of the `select` rows that lie closest to their n - f - 2 nearest others.

    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (Blanchard et al., 2017):
    scores are sums of squared distances; ties go to the lower row.
    """

    f: int
    select: int | Literal["max"] = 1
    """How many rows to average; "max" is Multi-Krum's n - f - 2."""

    def __post_init__(self) -> None:
        check_f(self.f)
        if self.select != "max" and self.select < 1:
            raise ValueError(f"`select` should be at least 1. Found {self.select}.")

    def requires(self, n: int, f: int) -> str | None:
        if n < 2 * self.f + 3:
            return f"it needs n >= 2 f + 3, {2 * self.f + 3} for f = {self.f}, and n is {n}"
        if self.select != "max" and self.select > n - self.f - 2:
            return f"it can select at most n - f - 2 = {n - self.f - 2} rows, not {self.select}"
        return told_enough(self, f)

    def __call__(self, gram: Gram) -> Tensor:
        m = len(gram)
        neighbours = m - self.f - 2
        select = neighbours if self.select == "max" else self.select
        others = gram.sqdist.masked_fill(torch.eye(m, dtype=torch.bool), torch.inf)
        scores = others.sort(dim=1).values[:, :neighbours].sum(dim=1)
        chosen = scores.argsort(stable=True)[:select]
        return torch.zeros(m, dtype=torch.float64).index_fill(0, chosen, 1 / select)
