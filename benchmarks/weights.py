"""Accuracy of rules with and without weights: sites of 190 to 17 834 samples, one of which lies.

    python benchmarks/weights.py --json benchmarks/results/weights.json
    python benchmarks/weights.py --rules mean nnm+trimmed_mean --seeds 1 --rounds 100
    python benchmarks/weights.py --alpha 0.1 --cap 0.3

Eight sites whose sizes are in the proportions of `SIZES`; digits, dealt so that the classes of a site are
Dirichlet(alpha). In one column the smallest site, with 0.6 % of the data, sends its gradient a thousand
times too long; in another the second largest sends minus ten times its own. Weights are the sizes of
the shares, truncated so that the heaviest site has `--cap` of the weight; those of the mean are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from varangian.config import load
from varangian.launch import RunError, run

SIZES = (17834, 4470, 3100, 2350, 1820, 1290, 610, 190)
"""Samples of each site, the largest first: 31 664."""
SMALLEST, SECOND = len(SIZES) - 1, 1
RULES = (
    *("mean", "median", "trimmed_mean", "krum", "geometric_median", "centered_clipping", "caf"),
    *("nnm+trimmed_mean", "nnm+geometric_median", "arc+caf"),
)
"""Rules of both kinds."""
ATTACKS: dict[str, tuple[int, str]] = {
    "none": (SMALLEST, ""),
    "x 1000": (SMALLEST, "{extreme_scale: {scale: 1000}}"),
    "sign flip": (SECOND, "{sign_flip: {scale: 10}}"),
}
"""Who attacks, and how."""


def sites(
    labels: Tensor, workers: int, seed: int, *, alpha: float = 0.1, last: int = SMALLEST
) -> list[Tensor]:
    """Samples of each site: sizes in the proportions of `SIZES`, classes Dirichlet(alpha).

    The site of number `last` is the last worker, which is the one that attacks.
    """
    order = [*(site for site in range(workers) if site != last), last]
    shares = np.array(SIZES[:workers], dtype=float)[order]
    counts = np.maximum(2, np.floor(shares / shares.sum() * len(labels))).astype(int)
    counts[counts.argmax()] -= max(0, counts.sum() - len(labels))
    draw = np.random.default_rng(seed)
    left = {label: draw.permutation(np.flatnonzero(labels.numpy() == label)) for label in np.unique(labels)}
    classes, found = [*left], dict[int, Tensor]()
    # The smallest first: whoever comes last gets what is left, and the largest has of everything anyway.
    for site in np.argsort(counts, kind="stable"):
        wanted = draw.dirichlet(np.full(len(classes), alpha))
        taken = list[int]()
        while len(taken) < counts[site]:
            there = np.array([len(left[label]) > 0 for label in classes])
            odds = np.where(there, wanted + 1e-9, 0)
            label = classes[draw.choice(len(classes), p=odds / odds.sum())]
            taken.append(int(left[label][0]))
            left[label] = left[label][1:]
        found[int(site)] = torch.tensor(sorted(taken))
    rest = np.concatenate([*left.values()])
    largest = int(counts.argmax())
    found[largest] = torch.cat([found[largest], torch.from_numpy(rest)]).sort().values
    return [found[site] for site in range(workers)]


def accuracy(
    args: argparse.Namespace, rule: str, weighed: bool, attack: str, seed: int
) -> dict[str, object]:
    """One run."""
    last, spec = ATTACKS[attack]
    settings = [
        *(f"workers={len(SIZES)}", "f=1", f"rounds={args.rounds}", f"seed={seed}", "backend=simulate"),
        *("simulate.gradients=batched", f"aggregator={rule}", f"evaluate.every={args.rounds}"),
        f"partition={{weights:sites: {{alpha: {args.alpha}, last: {last}}}}}",
        *(("byzantine.count=1", f"byzantine.attack={spec}") if spec else ()),
    ]
    if weighed:
        settings.append("weights=samples")
    if weighed and rule != "mean":
        settings.append(f"weights_cap.alpha_star={args.cap}")
    with TemporaryDirectory() as folder:
        try:
            result = run(load(None, [*settings, f"output={folder}"]), note=lambda text: None)
        except RunError as error:
            return {"accuracy": None, "error": str(error)}
    return {"accuracy": result.accuracy, "digest": result.digest, "outcome": result.outcome}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.1, help="of the classes of a site")
    parser.add_argument("--cap", type=float, default=0.25, help="of the weight, for the heaviest site")
    parser.add_argument("--json", type=Path, help="where to write every run")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    names = [f"{attack}{', weights' if weighed else ''}" for weighed in (False, True) for attack in ATTACKS]
    said = f"{args.rounds} rounds, alpha {args.alpha}, cap {args.cap}"
    print(f"accuracy, %, mean of seeds {args.seeds}; {said}\n")
    print("| rule | " + " | ".join(names) + " |", "|---|" + "---|" * len(names), sep="\n")
    runs, began = list[dict[str, object]](), time.monotonic()
    for rule in args.rules:
        cells = []
        for weighed in (False, True):
            for attack in ATTACKS:
                found = [accuracy(args, rule, weighed, attack, seed) for seed in args.seeds]
                runs += [
                    {"rule": rule, "weights": weighed, "attack": attack, "seed": seed, **each}
                    for seed, each in zip(args.seeds, found, strict=True)
                ]
                known = [float(str(each["accuracy"])) for each in found if each["accuracy"] is not None]
                cells.append(f"{100 * statistics.mean(known):.1f}" if known else "-")
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{len(runs)} runs, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if args.json:
        settings = {"sizes": SIZES, "rounds": args.rounds, "alpha": args.alpha, "cap": args.cap}
        args.json.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
