"""A character GPT trained by DiLoCo while workers attack: rules side by side.

    python benchmarks/diloco.py --json diloco.json
    python benchmarks/diloco.py --rounds 3 --rules mean flag --attacks none alie
    python benchmarks/diloco.py --size 10M --rounds 2 --rules nnm+trimmed_mean --attacks none

Each cell is the held-out loss of a `varangian run` with the backend `simulate`: workers take H steps of
AdamW and push where they led, the server steps with Nesterov momentum (`docs/how-to/outer-steps.md`). Of
the rules, `median_norm` is none of this project: each vector is scaled down to the median of all lengths
and the mean is taken, as trainers with untrusted peers do. Traffic is computed, not measured. A file of
results is added to after each run, and what it has is not run again. A file belongs
to one text, that of `examples/char-gpt`: a call with another one is refused.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import math
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "char-gpt"

ATTACKS = {
    "none": None,
    "alie": "alie",
    "min-max": "min_max",
    "sign flip": "sign_flip",
    "stale": "{replay: {age: 5}}",
    "NaN": "non_finite",
    "x1000": "{extreme_scale: {scale: 1000.0}}",
}
"""Settings of `byzantine.attack` by name."""


LOST = 10.0
"""A loss above which nothing was learned: log(96), of a guess, is 4.6."""
SIZES = {
    "117k": "",
    "1M": "width: 160, layers: 3, heads: 5",
    "10M": "width: 384, layers: 6, heads: 6",
}
"""Options of `gpt:build` by about how many parameters that makes; those of the example are the smallest."""
RATES = {"117k": 0.003, "1M": 0.002, "10M": 0.001}
"""The largest learning rate of AdamW, after 20 steps of warmup."""


@dataclass(frozen=True)
class MedianNorm:
    """Clipping to the median of the lengths, then the mean: a bound on one vector, and no robust rule."""

    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: object) -> torch.Tensor:
        norms: torch.Tensor = gram.norms  # type: ignore[attr-defined]
        median = norms.sort().values[(len(norms) - 1) // 2]
        return torch.where(norms > median, median / norms, torch.ones_like(norms)) / len(norms)


RULES = {"median_norm": "diloco:MedianNorm"}
"""Settings of `aggregator` for names that are no rules."""


@dataclass(frozen=True)
class Job:
    rule: str
    attack: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    rule: str
    attack: str
    loss: float | None
    """None where it is not finite."""
    rounds: int
    outcome: str
    curve: list[tuple[int, float | None]]
    """Rounds that were done, and the loss then."""
    numbers: int
    """d, of the model."""
    seconds: float
    digest: str
    settings: tuple[str, ...] = ()


def carried_out(job: Job) -> Result:
    sys.path[:0] = [str(HERE), str(EXAMPLE)]
    torch.set_num_threads(1)
    from varangian import launch, load
    from varangian.config import load as config_of

    curve: list[tuple[int, float | None]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        config = config_of(str(EXAMPLE / "run.yaml"), [*job.settings, f"output={output}"])
        result = launch.run(
            config,
            observe=lambda record: (
                curve.append((record.round + 1, plain(record.loss))) if record.loss is not None else None
            ),
            note=lambda text: None,
        )
        state = load(result.folder, state=True)
    numbers = sum(value.numel() for value in state.values())
    return Result(
        job.rule,
        job.attack,
        plain(result.loss),
        result.rounds,
        result.outcome,
        curve,
        numbers,
        round(time.perf_counter() - began, 1),
        result.digest,
        job.settings,
    )


def plain(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    for seed, attack in itertools.product(args.seeds, args.attacks):
        for rule in args.rules:
            attacks = ATTACKS[attack] is not None
            yield Job(
                rule,
                attack,
                (
                    f"seed={seed}",
                    f"rounds={args.rounds}",
                    f"worker.local_steps={args.steps}",
                    f"aggregator={RULES.get(rule, rule)}",
                    f"evaluate.every={max(1, args.rounds // args.evaluations)}",
                    f"wire.dtype={args.wire}",
                    f"byzantine.count={2 if attacks else 0}",
                    f"byzantine.attack={ATTACKS[attack] if attacks else 'null'}",
                    *([f"server.fragments={args.fragments}"] if args.fragments > 1 else []),
                    *of_size(args.size),
                    *args.set,
                ),
            )


def of_size(size: str) -> list[str]:
    """Settings that are not those of the example."""
    if not SIZES[size]:
        return []
    return [
        f"model={{custom: {{target: 'gpt:build', options: {{{SIZES[size]}}}}}}}",
        f"worker.inner={{adamw: {{lr: {RATES[size]}, warmup: 20}}}}",
    ]


def traffic(numbers: int, args: argparse.Namespace, workers: int = 8) -> dict[str, float]:
    """Bytes of one worker for each step of training: what it sends and gets here, and in a ring of DDP."""
    of_push = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 4 / 256}[args.wire]
    return {
        "push": round(numbers * of_push / args.steps / args.fragments),
        "pull": round(numbers * 4 / args.steps / args.fragments),
        "ddp_sent": round(2 * (workers - 1) / workers * 4 * numbers),
        "ddp_received": round(2 * (workers - 1) / workers * 4 * numbers),
    }


def table(results: Sequence[Result], args: argparse.Namespace) -> str:
    """Losses, mean over seeds, and how far each is from the same rule without attack."""
    wanted = {job.settings for job in jobs(args)}
    found = dict[tuple[str, str], list[float]]()
    for result in results:
        if result.settings in wanted:
            loss = math.nan if result.loss is None else result.loss
            found.setdefault((result.rule, result.attack), []).append(loss)
    lines = [["attack", *args.rules], ["---"] * (1 + len(args.rules))]
    for attack in args.attacks:
        cells = [cell(found.get((rule, attack)), found.get((rule, "none"))) for rule in args.rules]
        lines.append([attack, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(losses: list[float] | None, calm: list[float] | None) -> str:
    if losses is None:
        return "-"
    loss = fmean(losses)
    if not loss < LOST:
        return "lost"
    return f"{loss:.3f}" + (f" ({loss / fmean(calm) - 1:+.1%})" if calm and calm is not losses else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rules = ["flag", "nnm+trimmed_mean", "mean", "median_norm"]
    parser.add_argument("--rules", nargs="+", default=rules, help="as `aggregator` takes them")
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS], choices=ATTACKS)
    parser.add_argument("--steps", type=int, default=20, help="inner steps of a round; by default 20")
    parser.add_argument("--fragments", type=int, default=1, help="P, of the parameters; by default 1")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--evaluations", type=int, default=5, help="on the way; by default 5")
    parser.add_argument("--wire", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--size", default="117k", choices=SIZES, help="parameters of the model, about")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; by default 1")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--json", type=Path, help="where to write all runs")
    return parser.parse_args()


def text() -> str:
    """A digest of the text that the model is trained on."""
    return hashlib.sha256(gzip.decompress((EXAMPLE / "text.txt.gz").read_bytes())).hexdigest()[:16]


def earlier(path: Path | None) -> dict[str, Any]:
    """The document of earlier calls."""
    if path is None or not path.exists():
        return {"commands": [], "results": []}
    document: dict[str, Any] = json.loads(path.read_text())
    if document["text"] != text():
        sys.exit(
            f"{path} should have runs on the text of examples/char-gpt, which is {text()}. Found "
            f"{document['text']}. Name another file, or check out the commit of those runs."
        )
    return document


def keep(args: argparse.Namespace, commands: Sequence[str], results: Sequence[Result]) -> None:
    if args.json is None:
        return
    document = {
        "commands": list(commands),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "text": text(),
        "bytes_per_step": traffic(results[-1].numbers, args),
        "results": [asdict(result) for result in results],
    }
    args.json.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    args = arguments()
    before, wanted = earlier(args.json), [*jobs(args)]
    results = [Result(**one | {"settings": tuple(one["settings"])}) for one in before["results"]]
    command = f"python benchmarks/diloco.py {shlex.join(sys.argv[1:])}"
    commands = [*dict.fromkeys([*before["commands"], command])]
    done = {(result.rule, result.attack, result.settings) for result in results}
    missing = [job for job in wanted if (job.rule, job.attack, job.settings) not in done]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(carried_out, job) for job in missing]):
            result = future.result()
            results.append(result)
            keep(args, commands, results)
            loss = "diverged" if result.loss is None else f"{result.loss:.4f}"
            print(
                f"{result.attack}, {result.rule}, {result.settings[0]}: {loss}, {result.rounds} rounds, "
                f"{result.seconds} s",
                flush=True,
            )
    settings = {job.settings for job in wanted}
    numbers = next(result.numbers for result in results if result.settings in settings)
    bytes = traffic(numbers, args)
    print(f"\n{table(results, args)}\n\nbytes of a worker for each step: {bytes}")


if __name__ == "__main__":
    main()
