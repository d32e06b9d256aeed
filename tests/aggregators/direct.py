"""The Flag Aggregator as the papers write it, on the d x n matrix: slow, and independent of `varangian`."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

SLACK = 1e-7


@dataclass
class Direct:
    """ALGORITHM 1 with its switches; rows (n, d), made float64."""

    rows: Tensor
    components: int | None = None
    lam: float = 0.0
    iterations: int = 1
    pairs: str = "released"

    def __post_init__(self) -> None:
        self.rows = self.rows.double()
        n = len(self.rows)
        self.m = ceil((n + 1) / 2) if self.components is None else self.components
        self.lengths = self.rows.norm(dim=1)
        self.unit = torch.nn.functional.normalize(self.rows, dim=1, eps=1e-300)
        self.columns, self.shares = self.unit, torch.ones(n).double()
        if self.lam:
            differences, share = self._differences(n)
            self.columns = torch.cat([self.columns, differences])
            self.shares = torch.cat([self.shares, torch.full((len(differences),), share).double()])
        self.objectives: list[float] = []
        self.basis = self._solved()

    def _differences(self, n: int) -> tuple[Tensor, float]:
        ends = self.unit if self.pairs == "released" else self.rows
        between = [ends[i] - ends[j] for i in range(n) for j in range(n) if i != j]
        if self.pairs == "released":  # columns are scaled, so the share of their products is squared
            return torch.stack(between), (self.lam / (n * (n - 1))) ** 2
        return torch.stack([z / z.norm() for z in between if z.norm() > 0]), self.lam / (n - 1)

    def _solved(self) -> Tensor:
        weights, basis = self.shares, torch.empty(0)
        for _ in range(self.iterations):
            left = torch.linalg.svd((weights.sqrt()[:, None] * self.columns).T, full_matrices=False)
            kept = 1e-12 * left.S[0] < left.S
            basis = left.U[:, kept][:, : self.m]
            rest = (1 - (self.columns @ basis).square().sum(dim=1)).abs() + SLACK
            self.objectives.append(float((self.shares * rest.sqrt()).sum()))
            weights = self.shares / rest.sqrt()
        return basis

    @property
    def explained(self) -> Tensor:
        return (self.unit @ self.basis).square().sum(dim=1)

    def update(self, final: str) -> Tensor:
        n = len(self.rows)
        summed = {
            "paper": self.rows.sum(dim=0) / n,
            "released": self.unit.sum(dim=0) / self.m,
            "scaled": self.unit.sum(dim=0) * self.lengths.quantile(0.5) / n,
        }[final]
        return self.basis @ (self.basis.T @ summed)
