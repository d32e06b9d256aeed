"""Synthetic updates, copies of a central row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_count
from varangian.aggregators.gram import Gram


@MIXINGS.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Synthetic updates: copies of the most central row are added to the n rows, before a median.

    "Do We Really Need to Design New Byzantine-robust Aggregation Rules?" (Fang et al., 2025), FoundationFL.
    Two points are not taken from the paper's text and are not verified: that n / 2 copies are added, and
    that all are of one row, the one farthest from the nearer of two vectors: the largest values of all
    coordinates, and the smallest. The choice here deviates from that, and is made from distances between
    rows: the row whose farthest other row is nearest; of equal ones by the next farthest. With one
    coordinate both choose the row nearest to the middle between the ends.

    The copied row may be a Byzantine one, which then counts 1 + `count` times: no coefficient is known, and
    a rule that is told f, as the trimmed mean, should be told of the copies, too.
    """

    count: int | None = None
    """Copies that are added; null is n / 2, rounded down."""

    def __post_init__(self) -> None:
        if self.count is not None:
            check_count("count", self.count)

    def requires(self, n: int, f: int) -> str | None:
        added = self.outputs(n) - n if f else 0
        if n < 2 * f + added + 1:
            return (
                f"with {added} copies of one of them the f = {f} Byzantine rows may be {f + added} of "
                f"{n + added} points: no majority is left"
            )
        return None

    def outputs(self, n: int) -> int:
        return n + (n // 2 if self.count is None else self.count)

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        m = len(gram)
        with np.errstate(over="ignore"):  # in float32 what is very far is equally far from all others
            distances = np.sqrt(gram.sqdist.numpy()).astype(np.float32)
        central = np.lexsort(np.sort(distances, axis=1).T)[0]
        chosen = [*range(m), *[central] * (self.outputs(m) - m)]
        return torch.from_numpy(np.eye(m)[chosen])
