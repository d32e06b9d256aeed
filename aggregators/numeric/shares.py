"""Weights of rows: what share of the whole each has, and how much of it may be Byzantine.

With weights the number f of Byzantine rows becomes a budget B, the weight of the f heaviest rows: whoever
the f Byzantine workers are, they have no more together. A row of weight k/N counts as k of N equal rows.

n  rows     m  rows that are left
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from varangian.aggregators.numeric.algebra import Array

CRUMB = 1e-12
"""Weight that is rounding. It must not be multiplied by a number that a Byzantine row chose."""
HALF = 0.5 - CRUMB
"""Weight that is half of all, but for rounding."""
MINORITY = 0.5 - 1e-7
"""Weight that a Byzantine minority stays below: columns of float32 tell it from half of all."""


class SharesError(ValueError):
    """Weights that are not one positive number for each row."""


@dataclass(frozen=True, eq=False)
class Shares:
    """The weights of the rows of a round, not all of them equal."""

    p: Array
    """Weights of the rows that are left, of sum 1: (m,)."""
    heaviest: Array
    """Weight of the k heaviest rows for each k, before any was proved invalid: (n+1,)."""
    spent: float = 0.0
    """Weight of the rows that were proved invalid and are gone."""
    faults: int = 0
    """How many these are."""

    @classmethod
    def of(cls, weights: Sequence[float] | Tensor | Array, n: int, faults: int = 0) -> Shares | None:
        """The weights of n rows, and after them those of `faults` that are gone; None where all are equal.

        Raises:
            SharesError: they are not n + faults positive numbers.
        """
        given = _numbers(weights)
        if n == 0:
            return None
        if given.shape != (n + faults,):
            of = f"{n} rows" if not faults else f"{n} rows, and then of the {faults} that are gone"
            raise SharesError(f"`weights` should be one for each of {of}. Found {_shape(given)}.")
        if not np.all((given > 0) & np.isfinite(given)):
            i = int(np.argmin((given > 0) & np.isfinite(given)))
            raise SharesError(f"`weights` should be positive and finite. Found {given[i]} for row {i}.")
        if np.all(given == given[0]):
            return None
        p = given / given.max()  # so that no sum overflows
        p /= p.sum()
        whole = cls(p, np.concatenate([[0.0], np.cumsum(np.sort(p)[::-1])]))
        return whole.keeping(range(n)) if faults else whole

    def __len__(self) -> int:
        return len(self.p)

    def keeping(self, kept: Sequence[int]) -> Shares:
        """The weights of these rows; each of the others was proved invalid, and spends its own weight."""
        if len(kept) == len(self):
            return self
        chosen = self.p[[*kept]]
        left = float(chosen.sum())
        return replace(
            self,
            p=chosen / left,
            spent=self.spent + (1 - self.spent) * (1 - left),
            faults=self.faults + len(self) - len(kept),
        )

    def budget(self, f: int) -> float:
        """B, the most weight that f Byzantine rows can have among those that are left."""
        most = self.heaviest[min(f + self.faults, len(self.heaviest) - 1)]
        return max(0.0, float(most - self.spent)) / (1 - self.spent)

    @property
    def largest(self) -> float:
        """The weight of the heaviest row."""
        return float(self.p.max())

    def median(self, values: Array) -> float:
        """The weighted median; where half of the weight lies on either side, halfway between."""
        order = np.argsort(values, kind="stable")
        total = np.cumsum(self.p[order])
        low, high = values[order[_first(total >= HALF)]], values[order[_first(total > 1 - HALF)]]
        return float(low + (high - low) / 2)

    @cached_property
    def counts(self) -> Array:
        """The weights on a scale where that of a typical row is 1: (m,)."""
        counts: Array = self.p * len(self.p)
        return counts


@dataclass(frozen=True, kw_only=True)
class WeightCap:
    """Truncation of weights, so that few workers never have most of the weight.

    "Towards Federated Learning With Byzantine-Robust Client Weighting" (Portnoy et al., 2022): every weight
    above U becomes U, the largest with which the ceil(alpha n) heaviest of n workers have at most
    alpha_star of the weight. So claims about the size of a data set are worth no more than that.
    """

    alpha: float | None = None
    """Share of the workers, the heaviest ones; null is f of them."""
    alpha_star: float
    """Most of the weight that they may have; below 1/2."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise ValueError(f"`alpha` should be between 0 and 1. Found {self.alpha}.")
        if not 0 < self.alpha_star < 0.5:
            raise ValueError(f"`alpha_star` should be above 0 and below 1/2. Found {self.alpha_star}.")

    def counted(self, n: int, f: int) -> int:
        """How many workers are the heaviest ones."""
        return max(1, f if self.alpha is None else math.ceil(self.alpha * n - CRUMB))

    def bound(self, weights: Sequence[float], f: int) -> float | None:
        """U; the largest weight where none is above it, and None where there is no such U."""
        n, k = len(weights), self.counted(len(weights), f)
        if k / n > self.alpha_star + CRUMB:  # U from below makes all weights equal
            return None
        # Of the weights, descending, j are truncated: U is what solves top(U) = alpha_star total(U).
        ordered = sorted(weights, reverse=True)
        for j in range(n):
            inside = sum(ordered[j:k])  # of the heaviest, those below U
            share = min(j, k) - self.alpha_star * j
            room = self.alpha_star * sum(ordered[j:]) - inside
            highest = ordered[j - 1] if j else ordered[0]
            if j == 0:
                if room >= -CRUMB * ordered[0]:
                    return ordered[0]
            elif share <= 0 or room / share >= ordered[j]:
                return min(highest, room / share) if share > 0 else highest
        return ordered[-1]

    def capped(self, weights: Sequence[float], f: int) -> tuple[float, ...] | None:
        """The weights, none above U; None where there is no such U."""
        most = self.bound(weights, f)
        return None if most is None else tuple(min(most, weight) for weight in weights)


def weights_by_name(
    given: Mapping[str, float], names: Sequence[str], cap: WeightCap | None, f: int
) -> dict[str, float]:
    """What each of these rows weighs, after truncation; one without a weight has the least of all."""
    least = min(given.values())
    known = [given.get(name, least) for name in names]
    capped = known if cap is None else cap.capped(known, f)
    return dict(zip(names, known if capped is None else capped, strict=True))


def least_favourable(weights: Sequence[float], rows: int, f: int) -> list[float]:
    """Of so many rows the weights that leave the least to honest ones: the f heaviest, and the lightest."""
    heaviest, lightest = max(1, f), sorted(weights)
    taken = min(heaviest, rows)
    return [*lightest[len(lightest) - taken :], *lightest[: rows - taken]]


def filled(weights: Array, upto: float | Array) -> Array:
    """The part of each weight that is taken, first to last, until `upto` is reached: (..., m) -> (..., m).

    The last one is taken in part, and nothing that is rounding.
    """
    total = np.cumsum(weights, axis=-1)
    taken = np.clip(np.asarray(upto)[..., None] - (total - weights), 0, weights)
    taken = np.where(taken < CRUMB, 0.0, np.where(weights - taken < CRUMB, weights, taken))
    found: Array = taken
    return found


def _first(there: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    return int(there.argmax()) if there.any() else len(there) - 1


def _numbers(weights: Any) -> Array:
    try:
        given = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
        numbers: Array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SharesError(f"`weights` should be numbers. {error}") from error
    return numbers


def _shape(given: Array) -> str:
    return f"{len(given)}" if given.ndim == 1 else f"shape {list(given.shape)}"
