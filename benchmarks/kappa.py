"""Robustness coefficients: the proven bound of each rule beside the largest ratio that a search finds.

    python benchmarks/kappa.py
    python benchmarks/kappa.py --json benchmarks/results/kappa.json
    python benchmarks/kappa.py --rules median nnm+median --steps 5000

For rows x and a set S of n - f of them the ratio is |F(x) - mean_S|^2 over the mean of |x_i - mean_S|^2
in S. The largest over all x and S is the best possible coefficient of the rule, kappa* in arXiv
2602.03899; what a search finds is a lower bound of it, and a proven coefficient an upper bound. For given
rows the worst S is found exactly, by trying all. The rows are those of known bad configurations and
random ones, and are then moved at random uphill. They are kept, so that every ratio can be computed
again. Exits with 1 if a ratio exceeds a bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varangian.aggregators import RULES, AggregationError, Aggregator, aggregator_from

Array = NDArray[np.float64]
CASES = ((9, 2), (15, 3), (15, 6))
"""n and f."""
MIXINGS = ("", "nnm+", "arc+", "bucketing+")
LEFT_OUT = ("fltrust",)
"""Rules that are nothing without a trusted reference."""
UNBOUNDED = 1e6
"""A ratio above which the search ends: the rule has no coefficient."""
STEPS = 60
DIGITS = 4
"""Decimals of the rows, which are kept in the file."""


@dataclass(frozen=True)
class Found:
    """The worst rows of one rule."""

    aggregator: str
    n: int
    f: int
    proven: float | None
    """`Aggregator.kappa`; None where none is known."""
    ratio: float
    """The largest ratio found; above `UNBOUNDED` the search ended."""
    rows: list[list[float]]
    """The n rows with this ratio."""


@cache
def sets(n: int, f: int) -> Array:
    """(C(n, f), n): every set of n - f rows, as shares of their mean."""
    kept = np.array(list(combinations(range(n), n - f)))
    shares = np.zeros((len(kept), n))
    np.put_along_axis(shares, kept, 1 / (n - f), axis=1)
    return shares


def worst_ratio(aggregator: Aggregator, rows: Array, f: int) -> float:
    """The ratio of these rows for the worst S; 0 where the rule does not take them."""
    try:
        rng = torch.Generator().manual_seed(0)
        update = aggregator(torch.from_numpy(rows), None, rng).vector.numpy()
    except AggregationError:
        return 0.0
    shares = sets(len(rows), f)
    moved = rows - update  # about the update: the error of S is then the length of its mean
    means = shares @ moved
    errors = (means**2).sum(axis=1)
    variances = shares @ (moved**2).sum(axis=1) - errors
    # Rounding, of the rows and of the update, and of what cancels in the variance.
    rounding = 1e-14 * (moved**2).sum(axis=1).max() + 1e-18 * (rows**2).sum(axis=1).max()
    ratios = np.maximum(errors - rounding, 0) / np.maximum(variances, rounding + 1e-300)
    return float(ratios.max())


def starts(n: int, f: int, random: np.random.Generator) -> Iterator[Array]:
    """Known bad configurations, and random rows."""
    camps = (np.arange(n) < f).astype(float)[:, None]
    yield camps
    yield camps + 100
    yield (np.arange(n) <= n // 2).astype(float)[:, None]  # halves
    yield np.where(np.arange(n) < f, 1000.0, np.arange(n) % 2)[:, None]  # far rows, and halves
    yield np.linspace(0, 1, n)[:, None]
    yield np.eye(n)[:, : n - 1][:, :4]  # a few rows alone in a direction each
    for d in (1, 2, 3):
        yield random.standard_normal((n, d))
        honest = random.standard_normal((n - f, d))
        for scale in (1.0, 1.5, 30.0):
            lies = np.repeat((honest.mean(0) - scale * honest.std(0))[None], f, axis=0)
            yield np.concatenate([honest, lies])


def search(name: str, n: int, f: int, steps: int, seed: int) -> Found | None:
    """The worst rows that are found for a rule; None where its condition does not hold."""
    aggregator = aggregator_from(name, "aggregator", f=f)
    if aggregator.requires(n) is not None:
        return None
    random = np.random.default_rng([seed, n, f, zlib.crc32(name.encode())])
    tried = [np.round(rows, DIGITS) for rows in starts(n, f, random)]
    ranked = sorted(((worst_ratio(aggregator, rows, f), i) for i, rows in enumerate(tried)), reverse=True)
    worst, place = ranked[0]
    best = tried[place]
    for ratio, i in ranked[:3]:  # uphill from the three worst
        rows, step = tried[i], 0.3
        for _ in range(steps // 3):
            if worst > UNBOUNDED:
                break
            chosen = random.random((n, 1)) < 0.3
            scale = step * (rows.std() + 10**-DIGITS)
            moved = np.round(rows + scale * chosen * random.standard_normal(rows.shape), DIGITS)
            found = worst_ratio(aggregator, moved, f)
            step *= 1.3 if found > ratio else 0.97
            if found > ratio:
                rows, ratio = moved, found
            if ratio > worst:
                best, worst = rows, ratio
    return Found(name, n, f, aggregator.kappa(n), worst, best.tolist())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [mix + rule for rule in RULES if rule not in LEFT_OUT for mix in MIXINGS]
    parser.add_argument("--rules", nargs="+", default=names, metavar="RULE")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"steps uphill for a rule; by default {STEPS}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios and their rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = list[Found]()
    for n, f in CASES:
        print(f"n = {n}, f = {f}: no rule has less than {f / (n - 2 * f):.3g}")
        for name in args.rules:
            if (one := search(name, n, f, args.steps, args.seed)) is not None:
                proven = "-" if one.proven is None else f"{one.proven:.4g}"
                print(f"  {name:32} proven {proven:>8}  found {one.ratio:.4g}", flush=True)
                found.append(one)
    if args.json is not None:
        entries = ",\n".join(json.dumps(asdict(one)) for one in found)
        head = json.dumps({"steps": args.steps, "seed": args.seed})[1:-1]
        args.json.write_text(f'{{{head}, "found": [\n{entries}\n]}}\n')
    wrong = [one for one in found if one.proven is not None and one.ratio > one.proven]
    for one in wrong:
        print(f"exceeded: {one.aggregator}, n = {one.n}, f = {one.f}: {one.ratio} > {one.proven}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
