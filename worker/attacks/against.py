"""The rule that an attack is made for, and whether it would select the attackers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from varangian.aggregators import Bulyan, Gram, Krum, Median, TrimmedMean
from varangian.worker.attacks.base import Knowledge
from varangian.worker.attacks.honest_rows import HonestRows

Rule: TypeAlias = Literal["krum", "multi_krum", "trimmed_mean", "median", "bulyan"]
Selection: TypeAlias = Krum | Bulyan
"""A rule that chooses rows, and can be asked which by distances alone."""
HALVINGS = 11
"""Of the interval in which a strength is searched: a part of 5e-4 is left."""


def made(name: Rule, f: int) -> Selection | Median | TrimmedMean:
    """A rule with its usual settings."""
    match name:
        case "krum":
            return Krum(f=f)
        case "multi_krum":
            return Krum(f=f, select="max")
        case "bulyan":
            return Bulyan(f=f)
        case "median":
            return Median()
        case "trimmed_mean":
            return TrimmedMean(f=f)


def attacked(name: Rule | None, knows: Knowledge) -> Selection | Median | TrimmedMean | None:
    """The rule that an attack is against; None where only the run's aggregator as it is can be asked.

    That is behind mixings, block by block, where whole vectors have no distances, and for a selection where
    rows have weights.
    """
    if name is not None:
        return made(name, knows.f if knows.rule is None else knows.rule.f)
    known = None if knows.rule is None else knows.rule.aggregator
    if known is None or known.mix or known.splits:
        return None
    rule = known.rule
    if isinstance(rule, Krum | Bulyan):
        return rule if knows.shares is None else None
    return rule if isinstance(rule, Median | TrimmedMean) else None


def largest_selected(rule: Selection, rows: HonestRows, f: int) -> float:
    """The largest gamma with which a rule selects attackers who send f copies of mean + gamma p."""
    if rows.length == 0:
        return 0.0
    n, apart = len(rows.along) + f, float(rows.sqdist.max()) ** 0.5
    # Of the neighbours in a score at least n - 2 f - 1 are honest for Krum, and one for Bulyan; an honest
    # vector has fewer than n neighbours within the largest distance of two.
    most = n / max(1, n - 2 * f - 1) if isinstance(rule, Krum) else n**0.5
    end = (float(rows.squares.max()) ** 0.5 + most * apart) / rows.length**0.5
    return largest(lambda gamma: selects(rule, rows.gram(gamma, f), f), end)


def largest(accepted: Callable[[float], bool], end: float) -> float:
    """The largest accepted number from 0 to an end, by bisection; 0 where none is found."""
    low, high = 0.0, end
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if accepted(middle):
            low = middle
        else:
            high = middle
    return low


def selects(rule: Selection, gram: Gram, f: int) -> bool:
    """Whether a rule selects the last f points: all of them, or as many as it selects."""
    if rule.requires(len(gram), rule.f):
        return False
    weights = rule(gram) if isinstance(rule, Krum) else rule.select(gram).sum(dim=0)
    chosen = weights > 0
    return int(chosen[-f:].sum()) >= min(f, max(1, int(chosen.sum())))
