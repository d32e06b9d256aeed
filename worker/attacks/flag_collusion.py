"""Collusion against the Flag Aggregator: one direction, which its subspace keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from varangian.aggregators import Flag
from varangian.aggregators.numeric.shares import Shares
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, HonestRows, measure

TILTS = (-0.75, -0.6, -0.45, -0.3, -0.15, 0.0, 0.2, 0.4)
"""Parts of the mean that are tried, as sines of the angle from p towards the mean."""


@ATTACKS.register("flag_collusion")
@dataclass(frozen=True)
class FlagCollusion:
    """Collusion inside the subspace that the Flag Aggregator keeps: all send one direction b, close to p.

    The Flag Aggregator adds up unit vectors x_i, projected on the m leading directions of sum x_i x_i'. Let
    f attackers send the same unit vector b. They add f b b' to that sum, and the part q of b outside of the
    subspace has f |q|^2 at most its eigenvalue m + 1, which is at most n / (m + 1), as all add up to n; so
    |q|^2 is below 2 / f, and far less in practice. So b enters the result with its whole length, f / n,
    which is the most that attackers can have; distinct directions would compete with honest noise for the
    subspace. A direction that stays from round to round does most harm, since no momentum averages it out.

    b lies between p and the mean, or minus the mean: the part s of the mean in b that is best for the
    attackers is found by asking the rule, for a few s, for its progress along p less that along the mean,
    both as unit vectors. Where the subspace keeps the honest mean besides b, a part against it is best.
    Where it does not, because honest vectors differ too much, their projections on b can be turned towards
    p: with r the length of the mean of honest unit vectors, (f + (n - f) r s) sqrt(1 - s^2) / n is along p.
    The rule is that of the run, or the usual Flag Aggregator where it has another one. The length of b,
    which the rule only uses for a median, is that of the longest honest vector.

    Vector: a unit vector b between p and the mean, times the longest honest length; the part of the
    mean by a search.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "colluders"
    usual: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    direction: Direction = "std"
    """p: against the standard deviation ("std"), against the mean ("unit"), or against the signs of the
    mean ("sign"). Where it is 0, against the mean."""

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        rows = measure(knows.honest, self.direction)
        if rows.length == 0:
            rows = measure(knows.honest, "unit")
        if rows.length == 0:
            return own.clone()
        known = None if knows.rule is None else knows.rule.aggregator
        rule = known.rule if known is not None and isinstance(known.rule, Flag) else Flag()
        longest = math.sqrt(max(0.0, rows.mean_length + float((rows.squares + 2 * rows.products).max())))
        found = [combination(rows, tilt, longest) for tilt in TILTS] if rows.mean_length else []
        shares = knows.shares if rule.lam == 0 else None  # with pairs Flag takes no weights
        best = max(found, key=lambda pair: harm(rule, rows, pair, knows.f, shares), default=(0.0, 0.0))
        base, gamma = best if any(best) else (0.0, longest / math.sqrt(rows.length))
        return rows.at(gamma, own, base)


def combination(rows: HonestRows, tilt: float, length: float) -> tuple[float, float]:
    """Coefficients of the mean and of p: of a vector of this length, turned from p towards the mean."""
    base, gamma = tilt / math.sqrt(rows.mean_length), math.sqrt((1 - tilt * tilt) / rows.length)
    square = base * base * rows.mean_length + 2 * base * gamma * rows.mean_along
    found = math.sqrt(max(0.0, square + gamma * gamma * rows.length))
    return (base * length / found, gamma * length / found) if found else (0.0, 0.0)


def harm(
    rule: Flag, rows: HonestRows, sent: tuple[float, float], f: int, shares: Shares | None = None
) -> float:
    """<F, p> / |p| - <F, mean> / |mean| of the result F, where f attackers have these coefficients."""
    base, gamma = sent
    weights = rule(rows.gram(gamma, f, base).weighted(shares)).numpy()
    along = np.append(rows.along + rows.mean_along, [base * rows.mean_along + gamma * rows.length] * f)
    ahead = np.append(
        rows.products + rows.mean_length, [base * rows.mean_length + gamma * rows.mean_along] * f
    )
    return float(weights @ (along / math.sqrt(rows.length) - ahead / math.sqrt(rows.mean_length)))
