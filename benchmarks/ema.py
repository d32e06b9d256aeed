"""The scaling rule of a moving average: kappa times larger batches, on a noisy quadratic.

    python benchmarks/ema.py
    python benchmarks/ema.py --kappas 2 8 32 --decay 0.999
    python benchmarks/ema.py --kappas 8 --dimensions 20 --lr 0.005 --steps 400

The base run takes small steps and averages with rho. Each other run takes one step for every kappa of them:
kappa times the batch (the mean of the same noise), kappa times the learning rate, and averages with
rho^kappa (the rule), with 1 - kappa (1 - rho) (the rule to first order), or with rho itself. What counts is
how far its average z ends from that of the base run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from varangian.server.training.ema import Average, Ema


@dataclass(frozen=True)
class Quadratic:
    """E |theta|^2 / 2, with noise of variance `noise`^2 / batch in every coordinate of a gradient."""

    dimensions: int = 50
    start: float = 1.0
    """Of every coordinate; the least is at 0."""
    noise: float = 1.0
    lr: float = 1e-3
    steps: int = 1024
    """Of the base run."""
    decay: float = 0.99


RATES: dict[str, Callable[[float, int], float]] = {
    "rho^kappa": lambda rho, kappa: rho**kappa,
    "1 - kappa (1 - rho)": lambda rho, kappa: max(0.0, 1 - kappa * (1 - rho)),
    "rho": lambda rho, kappa: rho,
}


def averaged(problem: Quadratic, noise: Tensor, kappa: int, rho: float) -> Tensor:
    """z after `steps` / kappa steps of batches of kappa; `noise` is (steps, dimensions)."""
    theta = torch.full((problem.dimensions,), problem.start)
    average = Average(Ema(decay=rho, reference_batch=kappa), theta)
    for drawn in noise.unflatten(0, (-1, kappa)).mean(1):
        theta = theta - kappa * problem.lr * (theta + drawn)
        average.update(theta, samples=kappa)
    return average.parameters


def errors(problem: Quadratic, kappa: int, seed: int) -> dict[str, float]:
    """Of each rule for rho, |z - z_base|."""
    rng = torch.Generator().manual_seed(seed)
    noise = problem.noise * torch.randn(problem.steps, problem.dimensions, generator=rng)
    base = averaged(problem, noise, 1, problem.decay)
    found = {
        name: averaged(problem, noise, kappa, rate(problem.decay, kappa)) for name, rate in RATES.items()
    }
    return {name: float((z - base).norm()) for name, z in found.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kappas", nargs="+", type=int, default=[2, 4, 8, 16, 32])
    parser.add_argument("--decay", type=float, default=Quadratic.decay)
    parser.add_argument("--steps", type=int, default=Quadratic.steps, help="a multiple of every kappa")
    parser.add_argument("--lr", type=float, default=Quadratic.lr, help="of the base run")
    parser.add_argument("--dimensions", type=int, default=Quadratic.dimensions)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="the mean over these")
    parser.add_argument("--json", type=Path, help="where to write every run")
    args = parser.parse_args()
    if any(args.steps % kappa for kappa in args.kappas):
        parser.error(f"--steps should be a multiple of every kappa. Found {args.steps}.")
    return args


def main() -> None:
    args = arguments()
    problem = Quadratic(decay=args.decay, steps=args.steps, lr=args.lr, dimensions=args.dimensions)
    print(f"|z - z_base|, rho = {problem.decay}, {problem.steps} base steps, seeds {args.seeds}\n")
    print("| kappa | " + " | ".join(RATES) + " |", "|---|" + "---|" * len(RATES), sep="\n")
    runs: list[dict[str, float]] = []
    for kappa in args.kappas:
        found = [errors(problem, kappa, seed) for seed in args.seeds]
        runs += [
            {"kappa": kappa, "seed": seed, **each} for seed, each in zip(args.seeds, found, strict=True)
        ]
        means = [statistics.mean(each[name] for each in found) for name in RATES]
        print(f"| {kappa} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    if args.json:
        args.json.write_text(json.dumps({"problem": asdict(problem), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
