"""Sixteen workers, one of them ten times as slow: how long, and how many bytes, to a target accuracy.

    python benchmarks/asap_straggler.py --seeds 1 2 3 --json straggler.json --png straggler.png
    python benchmarks/asap_straggler.py --ways sync asap --rule trimmed_mean -f 1 --attack sign_flip

Every way is `varangian run` with real processes over gRPC and the settings that it prints; a step takes
every worker 50 ms and the slow one 500 ms, by `delays`. The clock starts when round 0 does. With --backend
simulate time is virtual: only those steps take any, as if everything else were fast enough. Bytes are
parameters and vectors: four for each number of every pull and every push; with --loopback also all that
this machine sent to itself meanwhile, so run it where nothing else does:

    unshare -rn sh -c 'ip link set lo up; exec python benchmarks/asap_straggler.py --loopback'
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from varangian import launch
from varangian.config import RunConfig, load
from varangian.config.build import task
from varangian.server.observability.record import RoundRecord
from varangian.worker.training.compute import WorkerCompute


@dataclass(frozen=True)
class Way:
    """How the server and its workers take turns."""

    rounds: int
    """Enough for the model to be as good as it gets."""
    settings: tuple[str, ...]


HURRIED = "server.deadline=0.1"
"""Two steps."""
WAYS = {
    "sync": Way(200, ("participation=sync", "server.quorum=16")),
    "sync, 100 ms": Way(240, ("participation=sync", "server.quorum=12", HURRIED)),
    "async": Way(400, ("participation={async: {buffer: 8, tau: 40}}",)),
    "asap": Way(320, ("participation={asap: {graph: exponential, tau: 2}}", "server.quorum=4", HURRIED)),
    "asap, one peer": Way(
        320, ("participation={asap: {graph: one_peer, tau: 0}}", "server.quorum=1", HURRIED)
    ),
}


class Point(NamedTuple):
    """After a round."""

    seconds: float
    accuracy: float
    answers: int
    """Vectors that were used until now."""
    loopback: int
    """Bytes."""


@dataclass
class Watch:
    """Looks at the clock after each round of a run."""

    workers: int
    virtual: bool
    now: float = 0.0
    began: float | None = None
    loopback: int = 0
    points: list[Point] = field(default_factory=list[Point])

    def __call__(self, record: RoundRecord) -> None:
        self.now = self.now + record.seconds["wait"] if self.virtual else time.monotonic()
        if self.began is None:
            self.began, self.loopback = self.now - record.seconds["wait"], sent()
        answered = self.workers - len(record.missing) if record.ages is None else len(record.ages)
        before = self.points[-1].answers if self.points else 0
        accuracy = 0.0 if record.accuracy is None else record.accuracy
        seen = Point(round(self.now - self.began, 3), accuracy, before + answered, sent() - self.loopback)
        self.points.append(seen)


@dataclass(frozen=True)
class Run:
    """The result."""

    way: str
    seed: int
    settings: list[str]
    parameters: int
    final: float
    """Mean accuracy over the last tenth of the rounds."""
    points: list[Point]

    def reached(self, target: float) -> Point | None:
        """The first of five rounds in a row at the target: one alone may be luck."""
        good = [point.accuracy >= target for point in self.points]
        return next((p for i, p in enumerate(self.points) if all(good[i : i + 5])), None)

    def megabytes(self, point: Point) -> float:
        """Of all pulls and pushes; a vector that is used was pulled for once."""
        return 2 * 4 * self.parameters * point.answers / 1e6


def carried_out(name: str, seed: int, args: argparse.Namespace) -> Run:
    way = WAYS[name]
    settings = [*common(args), f"rounds={way.rounds}", *way.settings, *args.set]
    with tempfile.TemporaryDirectory() as output:
        config = load(None, [*settings, f"seed={seed}", f"output={output}"])
        watch = Watch(config.workers, virtual=config.backend == "simulate")
        launch.run(config, observe=watch, note=lambda text: None)
    tail = [point.accuracy for point in watch.points[-max(1, way.rounds // 10) :]]
    return Run(name, seed, settings, parameters(config), statistics.mean(tail), watch.points)


def common(args: argparse.Namespace) -> list[str]:
    attack = [] if args.attack is None else [f"byzantine.attack={args.attack}", f"byzantine.count={args.f}"]
    return [
        f"backend={args.backend}",
        "workers=16",
        f"f={args.f}",
        f"aggregator={args.rule}",
        f"delays={{steps: {{step: {args.step}, factor: {args.factor}, workers: [0]}}}}",
        "worker.momentum=0",
        f"optimizer.lr={args.lr}",
        "evaluate.every=1",
        *attack,
    ]


def parameters(config: RunConfig) -> int:
    return WorkerCompute(task(config)).layout.numel


def sent() -> int:
    """Bytes that this machine has sent to itself."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), 0)


def kept(path: Path | None) -> list[Run]:
    """Results of earlier calls."""
    if path is None or not path.exists():
        return []
    runs = json.loads(path.read_text())
    return [Run(**run | {"points": [Point(*point) for point in run["points"]]}) for run in runs]


def table(runs: Sequence[Run], target: float, loopback: bool) -> str:
    """Means over the seeds, and each way against the first."""
    head = ["way", "rounds/s", f"s to {100 * target:.0f} %", "faster", "MB to it", "fewer", "final, %"]
    lines = [[*head, "loopback, MB"] if loopback else head]
    base: tuple[float, float] | None = None
    for name in dict.fromkeys(run.way for run in runs):
        mine = [run for run in runs if run.way == name]
        rate = statistics.mean(len(run.points) / run.points[-1].seconds for run in mine)
        final = f"{100 * statistics.mean(run.final for run in mine):.1f}"
        ends = [(run, point) for run in mine if (point := run.reached(target))]
        if len(ends) < len(mine):
            lines.append([name, f"{rate:.1f}", *["never"] * 4, final, *["never"] * loopback])
            continue
        seconds = statistics.mean(point.seconds for _, point in ends)
        size = statistics.mean(run.megabytes(point) for run, point in ends)
        base = base or (seconds, size)
        ratios = (f"{base[0] / seconds:.1f}x", f"{base[1] / size:.1f}x")
        line = [name, f"{rate:.1f}", f"{seconds:.1f}", ratios[0], f"{size:.1f}", ratios[1], final]
        wire = statistics.mean(point.loopback for _, point in ends) / 1e6
        lines.append([*line, f"{wire:.1f}"] if loopback else line)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def smooth(values: Sequence[float], reach: int = 4) -> list[float]:
    """Of each the mean with its neighbours."""
    return [statistics.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def draw(runs: Sequence[Run], target: float, path: Path) -> None:
    """Accuracy over seconds and over megabytes, of the first seed; means of nine rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for run in runs:
        if run.seed != runs[0].seed:
            continue
        shares = [100 * share for share in smooth([point.accuracy for point in run.points])]
        axes[0].plot([point.seconds for point in run.points], shares, lw=1.6, label=run.way)
        axes[1].plot([run.megabytes(point) for point in run.points], shares, lw=1.6)
    for axis, what in zip(axes, ("seconds", "megabytes pulled and pushed"), strict=True):
        axis.axhline(100 * target, color="0.5", ls=":", lw=1)
        axis.set_xscale("log")
        axis.set_xlabel(what)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out accuracy, %")
    axes[0].set_ylim(60, 100)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="*", default=[*WAYS], help=f"of: {'; '.join(WAYS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the mean over these")
    parser.add_argument("--backend", default="processes", choices=["simulate", "processes"])
    parser.add_argument("--target", type=float, default=0.95, help="accuracy; by default 0.95")
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a worker's step")
    parser.add_argument("--factor", type=float, default=10.0, help="of the slow worker")
    parser.add_argument("--lr", type=float, default=0.3, help="learning rate")
    parser.add_argument("--rule", default="mean", help="as `aggregator=` takes it")
    parser.add_argument("-f", type=int, default=0, help="Byzantine workers")
    parser.add_argument("--attack", help="as `byzantine.attack=` takes it")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--loopback", action="store_true", help="also show what the loopback sent")
    parser.add_argument("--json", type=Path, help="where to add every run")
    parser.add_argument("--png", type=Path, help="where to draw the first seed")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    runs = kept(args.json)
    for seed in args.seeds:
        for way in args.ways:
            runs.append(carried_out(way, seed, args))
            end = runs[-1].points[-1]
            print(f"{way}, seed {seed}: {100 * runs[-1].final:.1f} % after {end.seconds:.1f} s", flush=True)
    print(f"\n{' '.join(common(args))} {' '.join(args.set)}\n")
    print(table(runs, args.target, args.loopback))
    if args.png:
        draw(runs, args.target, args.png)
    if args.json:
        lines = [json.dumps(asdict(run)) for run in runs]
        args.json.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
