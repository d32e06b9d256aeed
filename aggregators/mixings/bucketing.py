"""Bucketing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.aggregators.base import MIXINGS, check_count
from varangian.aggregators.gram import Gram


@MIXINGS.register("bucketing")
@dataclass(frozen=True, kw_only=True)
class Bucketing:
    """Bucketing: the rows are shuffled and averaged in groups of `s`; the last group may be smaller.

    "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing" (Karimireddy et al., 2022). A
    Byzantine row spoils its group, so f of the ceil(n / s) points are Byzantine afterwards. The groups are
    drawn anew at every call, from the `rng` that an aggregator is given or else from torch's own generator;
    a server draws them from `server.seed` and the round.
    """

    s: int = 2
    """Rows per group."""

    def __post_init__(self) -> None:
        check_count("s", self.s)

    def requires(self, n: int, f: int) -> str | None:
        groups = self.outputs(n)
        if groups < 2 * f + 1:
            return f"f = {f} Byzantine rows may spoil as many of its {groups} groups: no majority is left"
        return None

    def outputs(self, n: int) -> int:
        return -(-n // self.s)

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        m = len(gram)
        mixing = torch.zeros(self.outputs(m), m, dtype=torch.float64, device="cpu")
        for group, members in enumerate(torch.randperm(m, generator=rng, device="cpu").split(self.s)):
            mixing[group, members] = 1 / len(members)
        return mixing
