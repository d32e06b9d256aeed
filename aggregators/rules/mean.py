"""The mean, the baseline without robustness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES
from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.shares import Shares


@RULES.register("mean")
@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of all rows, or their weighted mean. Not robust: one Byzantine row moves it anywhere."""

    robust: ClassVar[bool] = False

    def requires(self, n: int, f: int) -> str | None:
        return None

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        if gram.shares is not None:
            return torch.from_numpy(gram.shares.p.copy())
        return torch.from_numpy(np.full(len(gram), 1 / len(gram)))
