"""How much of the honest mean is left in an aggregate: eight rows of which two attack, no training.

    python benchmarks/direction.py

Six honest rows share a direction and have noise of their own: c is the cosine of two of them. Attackers
send `min-max` rows (mean + gamma p, as the attack does, with sight of all) or `stale` ones: as long as
honest rows and as alike, around a direction that has a cosine of 0.3 with theirs. A figure is
<aggregate, m> / <m, m> with m the honest mean, a mean over --draws draws: 1 is as if nobody had attacked.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import torch
from torch import Tensor

from varangian.aggregators import aggregator_from

HONEST, ATTACKERS, D = 6, 2, 2000
RULES: dict[str, object] = {
    "mean": "mean",
    "flag": "flag",
    "arc+flag": {"mix": ["arc"], "rule": "flag"},
    "nnm+flag": {"mix": ["nnm"], "rule": "flag"},
    "nnm+trimmed_mean": {"mix": ["nnm"], "rule": "trimmed_mean"},
    "arc+caf": {"mix": ["arc"], "rule": "caf"},
}


def unit(random: torch.Generator) -> Tensor:
    vector = torch.randn(D, generator=random, dtype=torch.float64)
    return vector / vector.norm()


def around(direction: Tensor, cosine: float, n: int, random: torch.Generator) -> Tensor:
    """n rows of length 1 whose products are about `cosine`."""
    return torch.stack([cosine**0.5 * direction + (1 - cosine) ** 0.5 * unit(random) for _ in range(n)])


def min_max(honest: Tensor) -> Tensor:
    """The row of Min-max, against the mean."""
    mean = honest.mean(0)
    p, apart = -mean / mean.norm(), torch.cdist(honest, honest).max() ** 2
    rest = honest - mean
    along = rest @ p
    gamma = (along + (along.square() + apart - rest.square().sum(1)).sqrt()).min()
    return mean + gamma * p


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cosines", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args()
    rules = {name: aggregator_from(spec, "aggregator", f=ATTACKERS) for name, spec in RULES.items()}
    print(f"| attack, c | {' | '.join(rules)} |\n|{' --- |' * (1 + len(rules))}")
    for attack in ("min-max", "stale"):
        for cosine in args.cosines:
            left = {name: list[float]() for name in rules}
            for draw in range(args.draws):
                random = torch.Generator().manual_seed(draw)
                common = unit(random)
                honest = around(common, cosine, HONEST, random)
                if attack == "min-max":
                    bad = min_max(honest).expand(ATTACKERS, -1)
                else:
                    old = 0.3 * common + (1 - 0.3**2) ** 0.5 * unit(random)
                    bad = around(old, cosine, ATTACKERS, random)
                mean = honest.mean(0)
                for name, rule in rules.items():
                    vector = rule(torch.cat([honest, bad])).vector
                    left[name].append(float(vector @ mean / mean.square().sum()))
            print(f"| {attack}, {cosine:g} | {' | '.join(f'{fmean(x):.2f}' for x in left.values())} |")


if __name__ == "__main__":
    main()
