"""FedAvg and FedLaAvg under unequal availability: two workers, one number, by turns.

    python benchmarks/fedlaavg_quadratic.py
    python benchmarks/fedlaavg_quadratic.py --rounds 3 2 --lr 0.05 --backend processes

Worker i has (x - e_i)^2 / 2, with e = 0 and 1, so the best x for both is 0.5. For so many rounds only the
first is there, then only the second for so many, and again. FedAvg averages what is there and ends near the
first. FedLaAvg averages the latest gradients of both, and ends where both are served; in its delta form,
from what is new in each.

All are whole runs of `varangian run`: `bowl` is a model of one number, and `numbers` its data.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from varangian import launch
from varangian.config import load
from varangian.worker.data import Dataset

OPTIMA = (0.0, 1.0)
WAYS: Mapping[str, str] = {
    "FedAvg": "{fedavg: {participants: 1, rule: mean}}",
    "FedLaAvg": "{fedlaavg: {participants: 1, rule: mean}}",
    "FedLaAvg, deltas": "{fedlaavg: {participants: 1, rule: mean, form: delta}}",
}


class Bowl(nn.Module):
    """Scores whose cross entropy with label i is (x - e_i)^2 / 2, but for a constant.

    They are the logarithms of probabilities: of the two labels exp(-(x - e_i)^2 / 2) / 4, and of a third,
    which nobody has, the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        known = -((self.x - torch.tensor(OPTIMA)) ** 2) / 2 - math.log(4)
        rest = (1 - known.exp().sum()).log()
        return torch.cat([known, rest[None]]).expand(len(inputs), 3)


def bowl(features: tuple[int, ...], classes: int) -> nn.Module:
    return Bowl()


def numbers() -> Dataset:
    """One sample of each label; what is in it does not matter."""
    x, y = torch.zeros(2, 1), torch.tensor([0, 1])
    return Dataset("numbers", 3, x, y, x, y)


def end(way: str, rounds: Sequence[int], lr: float, cycles: int, backend: str = "simulate") -> float:
    """Where x is after so many cycles."""
    period = sum(rounds)
    settings = [
        f"backend={backend}",
        f"aggregator={WAYS[way]}",
        "model=fedlaavg_quadratic:bowl",
        "data=fedlaavg_quadratic:numbers",
        "partition=halves",
        f"availability={{alternating: {{period: {period}, alpha: {rounds[1] / period}}}}}",
        f"rounds={cycles * period}",
        f"optimizer.lr={lr}",
        f"evaluate.every={cycles * period}",
        *("workers=2", "f=0", "worker.batch_size=1", "worker.momentum=0"),
    ]
    with tempfile.TemporaryDirectory() as output:
        config = load(None, [*settings, f"output={output}"])
        result = launch.run(config, observe=lambda record: None, note=lambda text: None)
        assert result.folder is not None
        return float(load_file(result.folder / "parameters.safetensors")["x"])


def biased(rounds: Sequence[int], lr: float) -> float:
    """Where FedAvg ends, after the turns of the second worker: the fixed point of a cycle."""
    first, second = rounds
    return (1 - (1 - lr) ** second) / (1 - (1 - lr) ** (first + second))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="FedAvg and FedLaAvg on a quadratic, with workers that are there by turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, nargs=2, default=[9, 1], metavar="T", help="of each worker's turns"
    )
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate")
    parser.add_argument("--cycles", type=int, default=100, help="how often both have their turns")
    parser.add_argument("--backend", default="simulate", choices=["simulate", "processes"])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    sys.path.append(str(Path(__file__).parent))  # where the model and the data are found by name
    args = arguments(argv)
    print(f"{args.rounds[0]} rounds of the first worker, {args.rounds[1]} of the second, lr {args.lr:g}")
    print(f"{'best for both':<18}{sum(OPTIMA) / len(OPTIMA):.4f}")
    for way in WAYS:
        x = end(way, args.rounds, args.lr, args.cycles, args.backend)
        formula = f"   ({biased(args.rounds, args.lr):.4f} by formula)" if way == "FedAvg" else ""
        print(f"{way:<18}{x:.4f}{formula}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
