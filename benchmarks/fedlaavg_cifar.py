"""CIFAR-10 with half of the workers, and of the classes, away at any time: FedAvg beside FedLaAvg.

    python benchmarks/fedlaavg_cifar.py PATH --seeds 1 2 3 --json fedlaavg.json --png fedlaavg.png
    python benchmarks/fedlaavg_cifar.py PATH --rules median nnm+trimmed_mean \
      --attack sign_flip --byzantine 1 --rounds 1000

The first half of the workers holds classes 0 to 4 and is there in the first half of every period, the other
half the rest. Both ways invite the same workers, who take the same local steps from the model they get, and
give what these send to the same rule: FedAvg the vectors of the round, FedLaAvg the latest of all workers.
What is compared is the best accuracy on held-out data over the run. Every cell is a `varangian run` with
the backend `simulate`, in a process of its own; `--jobs` of them at a time, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from varangian import launch
from varangian.config import load
from varangian.server.observability.record import RoundRecord

WAYS = ("fedavg", "fedlaavg")


@dataclass(frozen=True)
class Job:
    """One run."""

    way: str
    rule: str
    seed: int
    settings: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.way}, {self.rule}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """The result."""

    job: Job
    best: float
    final: float
    """Mean accuracy over the last two periods."""
    seconds: float
    """Of the processor."""
    curve: list[tuple[int, float]]
    """Rounds that were done, and the accuracy then."""
    digest: str


def carried_out(job: Job, last: int) -> Result:
    """Run it. `last` is how many rounds the end of a run is."""
    curve: list[tuple[int, float]] = []

    def observe(record: RoundRecord) -> None:
        if record.accuracy is not None:
            curve.append((record.round + 1, record.accuracy))

    began = time.process_time()
    with tempfile.TemporaryDirectory() as output:
        config = load(None, [*job.settings, f"seed={job.seed}", f"output={output}"])
        result = launch.run(config, observe=observe, note=lambda text: None)
    tail = [share for done, share in curve if done > curve[-1][0] - last]
    best = max(share for _, share in curve)
    seconds = time.process_time() - began
    return Result(job, best, statistics.mean(tail), seconds, curve, result.digest)


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    for seed in args.seeds:
        for rule in args.rules:
            for way in args.ways:
                yield Job(way, rule, seed, tuple(settings(way, rule, args)))


def settings(way: str, rule: str, args: argparse.Namespace) -> list[str]:
    attack = [f"byzantine.attack={args.attack}", f"byzantine.count={args.byzantine}"] if args.attack else []
    return [
        "backend=simulate",
        f"data={{cifar10: {{path: '{args.path}', test_limit: {args.test}}}}}",
        "model=lenet",
        "partition=halves",
        f"availability={{alternating: {{period: {args.period}}}}}",
        f"workers={args.workers}",
        f"f={args.byzantine if args.attack else 0}",
        f"aggregator={{{way}: {{participants: {args.participants}, {inner(rule)}}}}}",
        f"rounds={args.rounds}",
        f"worker.local_steps={args.steps}",
        f"worker.batch_size={args.batch}",
        "worker.momentum=0",
        f"optimizer.lr={args.lr}",
        f"evaluate.every={args.every}",
        *attack,
        *args.set,
    ]


def inner(rule: str) -> str:
    """A rule, or a pipeline in braces, as it stands in the settings of a way."""
    return rule.removeprefix("{").removesuffix("}") if rule.startswith("{mix") else f"rule: {rule}"


def table(results: Sequence[Result]) -> str:
    """Means over seeds; the differences are of pairs with one seed."""
    found = {(result.job.rule, result.job.way, result.job.seed): result for result in results}
    rules = list(dict.fromkeys(result.job.rule for result in results))
    seeds = sorted({result.job.seed for result in results})
    ways = [way for way in WAYS if any(result.job.way == way for result in results)]
    head = ["rule", *(f"{way}, best" for way in ways), *(f"{way}, end" for way in ways)]
    both = len(ways) == len(WAYS)
    lines = [[*head, "difference of the best, points"] if both else head]
    lines.append(["---"] * len(lines[0]))
    for rule in rules:
        cells = [found[rule, way, seed] for way in ways for seed in seeds]
        best = {way: [100 * cell.best for cell in cells if cell.job.way == way] for way in ways}
        ends = {way: [100 * cell.final for cell in cells if cell.job.way == way] for way in ways}
        means = [f"{statistics.mean(each[way]):.2f}" for each in (best, ends) for way in ways]
        lines.append([rule, *means, *([difference(best)] if both else [])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(best: dict[str, list[float]]) -> str:
    apart = [ours - theirs for theirs, ours in zip(*(best[way] for way in WAYS), strict=True)]
    each = ", ".join(f"{points:+.2f}" for points in apart)
    return f"{statistics.mean(apart):+.2f}" + (f" ({each})" if len(apart) > 1 else "")


def draw(results: Sequence[Result], path: Path) -> None:
    """Accuracy over rounds, a panel for each rule: thin each run, thick the mean of the best until then."""
    from matplotlib.figure import Figure

    rules = list(dict.fromkeys(result.job.rule for result in results))
    figure = Figure(figsize=(5.2 * len(rules), 3.6), layout="constrained")
    axes = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    for axis, rule in zip(axes, rules, strict=True):
        for way, colour in zip(WAYS, ("#e69f00", "#0072b2"), strict=True):
            mine = [result for result in results if (result.job.rule, result.job.way) == (rule, way)]
            for result in mine:
                rounds, shares = zip(*result.curve, strict=True)
                axis.plot(rounds, [100 * s for s in shares], color=colour, lw=0.5, alpha=0.5)
            if mine:
                best = [statistics.mean(found) for found in zip(*map(best_so_far, mine), strict=True)]
                axis.plot([done for done, _ in mine[0].curve], best, color=colour, lw=2.5, label=way)
        axis.set_title(rule)
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out accuracy, %")
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=110)


def best_so_far(result: Result) -> list[float]:
    return [100 * share for share in accumulate((share for _, share in result.curve), max)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="the folder with the parquet files of CIFAR-10")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--rules", nargs="+", default=["mean"], help="as `rule:` takes them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the mean over these")
    parser.add_argument("--workers", type=int, default=10, help="N; by default 10")
    parser.add_argument("--participants", type=int, default=5, help="K; by default 5")
    parser.add_argument("--steps", type=int, default=10, help="C, local steps of a round; by default 10")
    parser.add_argument("--batch", type=int, default=5, help="samples of a step; by default 5")
    parser.add_argument("--period", type=int, default=10, help="E, in rounds; by default 10")
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=0.02, help="of a local step and of the server's")
    parser.add_argument("--every", type=int, default=13, help="rounds between two evaluations")
    parser.add_argument("--test", type=int, default=2000, help="held-out samples; by default 2000")
    parser.add_argument("--attack", help="as `byzantine.attack=` takes it")
    parser.add_argument("--byzantine", type=int, default=1, help="how many attack, if any; by default 1")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; by default 2")
    parser.add_argument("--json", type=Path, help="where to add every run")
    parser.add_argument("--png", type=Path, help="where to draw the accuracies")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    wanted = [*jobs(args)]
    known = kept(args.json, args.path)
    done = {result.job: result for result in known}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        missing = [job for job in wanted if job not in done]
        for future in as_completed([pool.submit(carried_out, job, 2 * args.period) for job in missing]):
            result = future.result()
            done[result.job] = result
            scores = f"best {100 * result.best:.2f} %, end {100 * result.final:.2f} %"
            print(f"{result.job.label}: {scores}, {result.seconds:.0f} s", flush=True)
            if args.json:
                lines = [json.dumps(plain(each, args.path)) for each in done.values()]
                args.json.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    results = [done[job] for job in wanted]
    hidden = [value for value in settings("WAY", "RULE", args) if not value.startswith("data=")]
    print(f"\n{' '.join(hidden)}\n\n{table(results)}")
    if args.png:
        draw(results, args.png)


def kept(path: Path | None, data: str) -> list[Result]:
    """Results of earlier calls."""
    if path is None or not path.exists():
        return []
    return [restored(values, data) for values in json.loads(path.read_text())]


def restored(values: dict[str, Any], data: str) -> Result:
    job = values["job"]
    job["settings"] = tuple(setting.replace("PATH", data) for setting in job["settings"])
    values["job"] = Job(**job)
    values["curve"] = [(rounds, share) for rounds, share in values["curve"]]
    return Result(**values)


def plain(result: Result, path: str) -> dict[str, Any]:
    """As JSON takes it, without the path of the data."""
    values = asdict(result)
    values["job"]["settings"] = [value.replace(path, "PATH") for value in result.job.settings]
    return values


if __name__ == "__main__":
    main()
