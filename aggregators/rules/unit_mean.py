"""Mean of normalised rows, a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, honest_majority, light_minority
from varangian.aggregators.gram import Gram, inverses, typical
from varangian.aggregators.numeric.shares import Shares


@RULES.register("unit_mean")
@dataclass(frozen=True, kw_only=True)
class UnitMean:
    """The mean of the rows scaled to length 1, times their median length.

    A baseline: f Byzantine rows move it by at most f/n of that length. The released code of the Flag
    Aggregator also normalises the rows. Rows of length zero add nothing. With weights both the mean and the
    median are weighted, and f/n is the weight of the f heaviest rows.
    """

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, f)

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        return light_minority(shares, f)

    def __call__(self, gram: Gram) -> Tensor:
        lengths = gram.norms.numpy()
        if (shares := gram.shares) is not None:
            return torch.from_numpy(inverses(lengths) * shares.median(lengths) * shares.p)
        return torch.from_numpy(inverses(lengths) * (typical(lengths) / len(gram)))
