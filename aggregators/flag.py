"""The Flag Aggregator, wholly in the n x n geometry.

n  rows     m  components     X  the rows scaled to length 1, as columns (d, n); never formed

Every observation is a combination of columns of X, so a weighted sum of their outer products is X B X' with
an n x n matrix B = R R'. If V, L are the leading eigenvectors and eigenvalues of R' (X'X) R, the leading
eigenvectors of X B X' are Y = X A with A = R V L^(-1/2): orthonormal, and found without touching d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varangian.aggregators.base import RULES, check_positive, honest_majority
from varangian.aggregators.gram import Gram, inverses, typical

SLACK = 1e-7
"""The released code's: keeps the weight of a row that is explained entirely finite."""
CONVERGED = 1e-10
"""The paper's: the least change of the objective that is worth another iteration."""
COINCIDE = 1e-10
"""Squared distance over squared norm below which the direction between two rows is rounding."""


@RULES.register("flag")
@dataclass(frozen=True, kw_only=True)
class Flag:
    """The part of the rows that lies in the subspace which explains them best, most rows counting most.

    "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
    Optimization" (Almasi et al., 2024). The paper's Algorithm 1 sums raw rows in its last line, and is then
    not robust: one long row owns the update. The authors' released code sums rows of length 1 and runs a
    single iteration. We do as it does, and restore the length of a typical row. More iterations fit half
    of the rows exactly and forget the others, which in our experiments costs more than it gains.
    """

    components: int | None = None
    """Dimensions of the subspace; null for the paper's ceil((n + 1) / 2)."""
    lam: float = 0.0
    """Weight of the differences between rows. The paper's grow with n; with its normalised `pairs` a
    large weight makes the subspace one of noise."""
    iterations: int = 1
    """Most reweightings; the first weighs all rows alike. The released code runs 1, the paper 5."""
    final: Literal["scaled", "released", "paper"] = "scaled"
    """The last line: rows of length 1 times the median length, over n; the same without the length and over
    `components`; raw rows over n, not robust."""
    pairs: Literal["released", "paper"] = "released"
    """Differences of rows of length 1 as they are, or differences of raw rows scaled to length 1."""

    def __post_init__(self) -> None:
        if self.components is not None:
            check_positive("components", self.components)
        check_positive("iterations", self.iterations)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"`lam` should be non-negative and finite. Found {self.lam}.")

    @property
    def robust(self) -> bool:
        return self.final != "paper"

    def requires(self, n: int, f: int) -> str | None:
        if self.components is not None and self.components > n:
            return f"it cannot find {self.components} components in {n} rows"
        return honest_majority(n, f)

    def __call__(self, gram: Gram) -> Tensor:
        n = len(gram)
        shares = {
            "scaled": (typical(gram.norms) / n).expand(n),
            "released": torch.full((n,), 1 / self._components(n), dtype=torch.float64),
            "paper": gram.norms / n,
        }
        found = self._subspace(gram)
        projected = found.basis @ (found.shadows @ shares[self.final])
        return projected * inverses(gram.norms)

    def explain(self, gram: Gram) -> Mapping[str, Tensor]:
        """How much of the squared length of each row lies in the subspace, from 0 to 1."""
        return {"explained_variance": self._subspace(gram).explained}

    def _components(self, n: int) -> int:
        return (n + 2) // 2 if self.components is None else self.components

    def _subspace(self, gram: Gram) -> _Subspace:
        """Iteratively reweighted least squares for the sum of sqrt(1 - explained variance)."""
        scale = inverses(gram.norms)
        unit = gram.inner * scale[:, None] * scale
        pairs = _Pairs.of(gram, self.lam, self.pairs)
        components = self._components(len(gram))
        found = _leading(unit, torch.eye(len(gram)).double() + pairs.observed(None), components)
        for _ in range(self.iterations - 1):
            observed = torch.diag(_weight(found.explained)) + pairs.observed(found)
            before, found = found, _leading(unit, observed, components)
            if abs(before.objective(pairs) - found.objective(pairs)) < CONVERGED:
                break
        return found


@dataclass(frozen=True, eq=False)
class _Subspace:
    """r dimensions: Y = X @ basis."""

    basis: Tensor  # (n, r)
    shadows: Tensor  # (r, n): Y'X

    @property
    def explained(self) -> Tensor:
        return self.shadows.square().sum(dim=0)

    def objective(self, pairs: _Pairs) -> float:
        rest = (1 - self.explained).abs() + SLACK
        between = (1 - pairs.explained(self)).abs() + SLACK
        return float(rest.sqrt().sum() + (pairs.lam * pairs.there * between.sqrt()).sum())


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The differences z_ij = (s_i x_i - s_j x_j) / D_ij of columns of X, for all ordered pairs."""

    lam: float
    """Of one pair."""
    lengths: Tensor  # s, (n,)
    sqdist: Tensor  # D squared, (n, n)
    there: Tensor  # (n, n) bool: not of a row with itself or with its copy

    @classmethod
    def of(cls, gram: Gram, lam: float, form: Literal["released", "paper"]) -> _Pairs:
        n = len(gram)
        apart = ~torch.eye(n, dtype=torch.bool)
        if form == "released":
            # It scales the columns, so that its square scales their products.
            share = (lam / max(1, n * (n - 1))) ** 2
            return cls(share, torch.ones(n).double(), torch.ones(n, n).double(), apart)
        squares = gram.norms.square()
        apart &= gram.sqdist > COINCIDE * torch.maximum(squares[:, None], squares)
        return cls(lam / max(1, n - 1), gram.norms, torch.where(apart, gram.sqdist, 1.0), apart)

    def explained(self, found: _Subspace) -> Tensor:
        """As of the rows, of each difference: (n, n)."""
        ends = found.shadows.T * self.lengths[:, None]
        # Not by inner products: near rows would lose what is between them.
        between = torch.cdist(ends, ends, compute_mode="donot_use_mm_for_euclid_dist")
        return between.square() / self.sqdist

    def observed(self, found: _Subspace | None) -> Tensor:
        """The pairs' part of B: (n, n)."""
        weight = self.there * self.lam / self.sqdist
        if found is not None:
            weight = weight * _weight(self.explained(found))
        laplacian = torch.diag(weight.sum(dim=1)) - weight
        return 2 * laplacian * self.lengths[:, None] * self.lengths


def _weight(explained: Tensor) -> Tensor:
    return ((1 - explained).abs() + SLACK).rsqrt()


def _leading(unit: Tensor, observed: Tensor, components: int) -> _Subspace:
    """The leading eigenvectors of X B X' for X'X = `unit` and B = `observed`; fewer if its rank is less."""
    root = torch.linalg.cholesky(observed)
    values, vectors = torch.linalg.eigh(root.T @ unit @ root)
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    rounding = len(unit) * torch.finfo(values.dtype).eps * values[0].clamp(min=0)
    kept = values > rounding
    basis = root @ (vectors[:, kept] * values[kept].rsqrt())
    return _Subspace(basis, basis.T @ unit)
