"""Sparse attack: aggressive where the model is sensitive, imperceptible elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.alie import step
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import measure, same_place, sendable


@ATTACKS.register("sparse")
@dataclass(frozen=True)
class Sparse:
    """Sparse: mean - std s, with a large s in the parameters that matter most and ALIE's z elsewhere.

    The hybrid attack of "Aggressive, Imperceptible, or Both: Architecture-Aware Hybrid Byzantines in
    Federated Learning" (Ozfatura et al., 2024), written from its description. Sensitive parameters are
    those with the largest |model mean|, the first-order change of the loss without them ("SNIP", Lee et
    al., 2019); the paper prunes an untrained network once, which is not done here. There the deviation is
    at most the interquartile range of the honest values. Optimized, the sum of squared distances to the
    honest vectors is that of the innermost of them, so that no score by distances is better: with c_i =
    g_i - mean this leaves a deviation of length min |c_i|, and what ALIE's part does not use of it
    (smaller, if it is longer than that) goes into the sensitive parameters.

    Vector: mean - s std, s = scale for the sensitive parameters and z elsewhere.
    """

    needs: ClassVar[Sight] = "colluders"
    usual: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    share: float = 0.01
    """The share of the parameters that are taken for sensitive."""
    scale: float = 10.0
    """s of the sensitive parameters; with `optimized` the largest that is hidden."""
    z: float | None = None
    """s of the others; null is that of `alie`."""
    signs: bool = True
    """Whether the step goes against the sign of the mean in each coordinate, or down in all."""
    optimized: bool = False
    """Whether s is made as large as the distances of honest vectors hide."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` should be above 0 and at most 1. Found {self.share}.")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"`scale` should be a finite number, at least 0. Found {self.scale}.")
        if self.z is not None and not 0 <= self.z < math.inf:
            raise ValueError(f"`z` should be a finite number, at least 0, or null. Found {self.z}.")

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if seen >= 2 and self.z is None and not math.isfinite(step(n, f)):
            return f"z_max has no value for n = {n} and f = {f}; give it a z"
        return same_place(seen)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        z = step(knows.n, knows.f) if self.z is None else self.z
        rows = measure(knows.honest, "std")
        sensitive = most_sensitive(knows.model.to(rows.mean) * rows.mean, self.share)
        down = rows.direction  # minus the deviation
        if self.signs:
            down = torch.where(rows.mean < 0, -down, down)
        aggressive = down[sensitive]
        wide = spread_of_middle(knows.honest.index_select(1, sensitive))
        aggressive = torch.maximum(torch.minimum(aggressive, wide), -wide)
        down = down.index_fill(0, sensitive, 0)
        scale = self.scale
        if self.optimized:
            room = float(rows.squares.min())
            quiet = float(down.square().sum())
            z = min(z, math.sqrt(room / quiet)) if quiet else z
            left, loud = max(0.0, room - z * z * quiet), float(aggressive.square().sum())
            scale = math.sqrt(left / loud) if loud else 0.0
        vector: Tensor = torch.add(rows.mean, down, alpha=z)
        vector[sensitive] += scale * aggressive
        return sendable(vector, own)


def most_sensitive(saliency: Tensor, share: float) -> Tensor:
    """The places of the coordinates with the largest magnitudes, at least one: (m,)."""
    count = max(1, math.ceil(share * len(saliency)))
    return saliency.abs().topk(count, sorted=False).indices


def spread_of_middle(columns: Tensor) -> Tensor:
    """The interquartile range of each column: (k, m) -> (m,) float64."""
    quarters = columns.new_tensor([0.25, 0.75], dtype=torch.float64)
    low, high = columns.double().quantile(quarters, dim=0).unbind()
    return torch.sub(high, low)
