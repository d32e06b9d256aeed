"""The Flag Aggregator, computed from the n x n Gram matrix alone.

n  rows     m  components     X  the rows scaled to length 1, as columns (d, n); never formed

Every observation is a combination of columns of X, so a weighted sum of their outer products is X B X' with
an n x n matrix B = R R'. If V, L are the leading eigenvectors and eigenvalues of R' (X'X) R, the leading
eigenvectors of X B X' are Y = X A with A = R V L^(-1/2): orthonormal, and found without the d columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.base import RULES, check_count, honest_majority, light_minority
from varangian.aggregators.gram import Gram, inverses, typical
from varangian.aggregators.numeric.algebra import Array, cholesky, eigh, product
from varangian.aggregators.numeric.shares import Shares

SLACK = 1e-7
"""As in the released code: keeps the weight of a row finite that lies in the subspace entirely."""
CONVERGED = 1e-10
"""As in the paper: the change of the objective below which iterations stop."""
EPSILON = float(np.finfo(np.float64).eps)
COINCIDE = 1e-10
"""Squared distance over squared norm below which the direction between two rows is rounding."""


@RULES.register("flag")
@dataclass(frozen=True, kw_only=True)
class Flag:
    """Flag Aggregator: the mean of the rows' projections on the subspace that explains them best.

    "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
    Optimization" (Almasi et al., 2024). The last line of the paper's Algorithm 1 sums raw rows, which
    is not robust: one long row determines the update. The authors' released code sums rows of length 1 and
    runs a single iteration. So does this one, and multiplies by the median length of the rows. With more
    iterations the subspace fits half of the rows exactly and ignores the others. With weights a row counts
    for the subspace, the mean and the median as often as it weighs; `components` stays a number of rows.
    """

    components: int | None = None
    """Dimensions of the subspace; null for the paper's ceil((n + 1) / 2)."""
    lam: float = 0.0
    """Weight of the differences between rows (lambda). Differences grow in number with n; with the paper's
    normalised `pairs` a large weight fits the subspace to noise."""
    iterations: int = 1
    """Most reweightings; in the first all rows weigh the same. The released code runs 1, the paper 5."""
    final: Literal["scaled", "released", "paper"] = "scaled"
    """The sum in the last line: rows of length 1 times the median length, over n ("scaled"); rows of length
    1, over `components` ("released"); raw rows, over n, which is not robust ("paper")."""
    pairs: Literal["released", "paper"] = "released"
    """Differences of rows of length 1 as they are, or differences of raw rows scaled to length 1."""

    def __post_init__(self) -> None:
        if self.components is not None:
            check_count("components", self.components)
        check_count("iterations", self.iterations)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"`lam` should be non-negative and finite. Found {self.lam}.")

    @property
    def robust(self) -> bool:
        return self.final != "paper"

    def requires(self, n: int, f: int) -> str | None:
        if self.components is not None and self.components > n:
            return f"it cannot find {self.components} components in {n} rows"
        return honest_majority(n, f)

    def weighted_requires(self, shares: Shares, f: int) -> str | None:
        if self.lam:
            return "differences between rows have no weights: set `lam` to 0"
        return self.requires(len(shares), 0) or light_minority(shares, f)

    def __call__(self, gram: Gram) -> Tensor:
        n, found, lengths = len(gram), self._subspace(gram), gram.norms.numpy()
        if gram.shares is not None:
            return self._weighted(found, lengths, gram.shares)
        if self.final == "scaled":
            shadow = found.shadows.sum(axis=1) * (typical(lengths) / n)
        elif self.final == "released":
            shadow = found.shadows.sum(axis=1) / self._components(n)
        else:
            shadow = found.shadows @ (lengths / n)
        return torch.from_numpy(found.basis @ shadow * inverses(lengths))

    def _weighted(self, found: _Subspace, lengths: Array, shares: Shares) -> Tensor:
        if self.final == "scaled":
            shadow = found.shadows @ (shares.p * shares.median(lengths))
        elif self.final == "released":
            shadow = found.shadows @ (shares.counts / self._components(len(shares)))
        else:
            shadow = found.shadows @ (shares.p * lengths)
        return torch.from_numpy(found.basis @ shadow * inverses(lengths))

    def explain(self, gram: Gram) -> Mapping[str, Tensor]:
        """The share of each row's squared length in the subspace, from 0 to 1."""
        return {"explained_variance": torch.from_numpy(self._subspace(gram).explained)}

    def _components(self, n: int) -> int:
        return (n + 2) // 2 if self.components is None else self.components

    def _subspace(self, gram: Gram) -> _Subspace:
        return gram.remembered(self, lambda: self._found(gram))

    def _found(self, gram: Gram) -> _Subspace:
        """Iteratively reweighted least squares for the sum of sqrt(1 - explained variance)."""
        scale = inverses(gram.norms.numpy())
        unit = gram.inner.numpy() * scale[:, None] * scale
        pairs = _Pairs.of(gram, self.lam, self.pairs)
        counts = np.ones(len(gram)) if gram.shares is None else gram.shares.counts
        found = _Subspace.leading(unit, counts, pairs, None, self._components(len(gram)))
        for _ in range(self.iterations - 1):
            before, weights = found, counts * _weight(found.explained)
            found = _Subspace.leading(unit, weights, pairs, before.between, self._components(len(gram)))
            if abs(before.objective(counts) - found.objective(counts)) < CONVERGED:
                break
        return found


@dataclass(frozen=True, eq=False)
class _Subspace:
    """A subspace of r dimensions, spanned by the columns of Y = X @ basis."""

    basis: Array  # (n, r)
    shadows: Array  # (r, n): Y'X
    pairs: _Pairs

    @classmethod
    def leading(
        cls, unit: Array, weights: Array, pairs: _Pairs, between: Array | None, components: int
    ) -> _Subspace:
        """The leading eigenvectors of X B X' for X'X = `unit`; fewer if its rank is less.

        B is the diagonal of the rows' weights and the pairs' part.
        """
        root = pairs.root(weights, between)
        values, vectors = eigh(product(product(root.T, unit), root))
        values, vectors = values[: -components - 1 : -1], vectors[:, : -components - 1 : -1]
        kept = values > len(unit) * EPSILON * max(values[0], 0)
        basis = product(root, vectors[:, kept] / np.sqrt(values[kept]))
        return cls(basis, product(basis.T, unit), pairs)

    @cached_property
    def explained(self) -> Array:
        """Squared length of each row's projection, (n,): the explained variance."""
        explained: Array = np.square(self.shadows).sum(axis=0)
        return explained

    @cached_property
    def between(self) -> Array:
        """The explained variance of each difference of rows, (n, n)."""
        return self.pairs.explained(self.shadows)

    def objective(self, counts: Array) -> float:
        rows = float((counts * np.sqrt(_rest(self.explained))).sum())
        if not self.pairs.lam:
            return rows
        return rows + self.pairs.lam * float((self.pairs.there * np.sqrt(_rest(self.between))).sum())


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The differences z_ij = (s_i x_i - s_j x_j) / D_ij of columns of X, for all ordered pairs."""

    lam: float
    """Weight of one pair."""
    lengths: Array  # s, (n,)
    sqdist: Array  # D squared, (n, n)
    there: NDArray[np.bool_]  # (n, n): not of a row with itself or with its copy

    @classmethod
    def of(cls, gram: Gram, lam: float, form: Literal["released", "paper"]) -> _Pairs:
        n = len(gram)
        apart = ~np.eye(n, dtype=bool)
        if form == "released" or not lam:
            # The weight scales the columns, so its square scales their products.
            share = (lam / max(1, n * (n - 1))) ** 2
            return cls(share, np.ones(n), np.ones((n, n)), apart)
        lengths, distances = gram.norms.numpy(), gram.sqdist.numpy()
        squares = np.square(lengths)
        apart &= distances > COINCIDE * np.maximum(squares[:, None], squares)
        return cls(lam / max(1, n - 1), lengths, np.where(apart, distances, 1.0), apart)

    def explained(self, shadows: Array) -> Array:
        """The share of each difference's squared length in a subspace: (r, n) -> (n, n)."""
        ends = torch.from_numpy(shadows.T * self.lengths[:, None])
        # Not by inner products: the difference of rows that are close would be lost to rounding.
        between = torch.cdist(ends, ends, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        explained: Array = np.square(between) / self.sqdist
        return explained

    def root(self, weights: Array, explained: Array | None) -> Array:
        """R with R R' = B."""
        if not self.lam:
            return np.diag(np.sqrt(weights))
        whole = np.diag(weights) + self.observed(explained)
        root = cholesky(whole)
        if root is not None:
            return root
        # The pairs' part is a graph's Laplacian: without rounding nothing is below the least weight.
        values, vectors = eigh(whole)
        repaired: Array = vectors * np.sqrt(np.maximum(values, weights.min()))
        return repaired

    def observed(self, explained: Array | None) -> Array:
        """The pairs' part of B: (n, n)."""
        weight = self.there * self.lam / self.sqdist
        if explained is not None:
            weight = weight * _weight(explained)
        laplacian = np.diag(weight.sum(axis=1)) - weight
        return 2 * laplacian * self.lengths[:, None] * self.lengths


def _rest(explained: Array) -> Array:
    return np.abs(1 - explained) + SLACK


def _weight(explained: Array) -> Array:
    weight: Array = 1 / np.sqrt(_rest(explained))
    return weight
