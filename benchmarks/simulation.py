"""Speed of `backend=simulate`, beside ByzFL's own training loop on the same task.

    python benchmarks/simulation.py --json simulation.json
    python benchmarks/simulation.py --rules TrMean Krum NNM+TrMean --attackers 3
    python benchmarks/simulation.py --cifar10 PATH

First whole rounds: a multilayer perceptron on the digits, with the same shares of samples, batch size,
momentum, rule and learning rate everywhere, from one round to the next, without start and evaluation.
ByzFL's clients and server are called as its documentation shows; without byzfl that way is left out. Rules
have ByzFL's names, and ours are what its configurations are translated to. Then, with `--cifar10`, the
gradients of one round of a convolutional network, beside one forward and backward pass of as many samples.
The ways take turns.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from varangian.bench.machine import load as machine_load
from varangian.bench.machine import machine
from varangian.cli.views.terminal import align
from varangian.config import RunConfig, load
from varangian.config.build import task
from varangian.config.load import loads
from varangian.experiments.sweep.byzfl import translate
from varangian.launch import run
from varangian.server.observability.record import RoundRecord
from varangian.worker.data.base import Dataset
from varangian.worker.data.partition import deal_samples
from varangian.worker.training.batched.compute import BatchedCompute
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.losses import fit_dataset
from varangian.worker.training.trainer import build_model

WARM_UP = 20
"""Rounds before the clock starts."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pace:
    """The pace of one run."""

    rounds_per_second: float
    undisturbed: float
    """Rounds per second as the fastest tenth of the rounds went: what other programs take is not in it."""
    cpu: float
    """Milliseconds of all threads for one round."""
    accuracy: float


Way = Callable[[], Pace]


def configuration(rule: str, args: argparse.Namespace, **more: Any) -> RunConfig:
    """The run of ours that does what theirs does."""
    *mixings, last = rule.split("+")
    named = {"aggregator": {"name": last}, "pre_aggregators": [{"name": name} for name in mixings]}
    base = translate({"benchmark_config": {}, **named}).grid["base"]
    attacked = {"count": args.attackers, "attack": {"ipm": {"epsilon": 1.0}}, "data": "all"}
    return loads(
        {
            "backend": "simulate",
            "workers": args.workers,
            "f": args.f,
            "rounds": args.rounds,
            "model": {"mlp": {"hidden": 64}},
            "data": "digits",
            "partition": "iid",
            "aggregator": base["aggregator"],
            "optimizer": {"lr": 0.1},
            "evaluate": {"every": args.rounds},
            "byzantine": attacked if args.attackers else {},
            **more,
        }
    )


def pace(stamps: Sequence[tuple[float, float]], accuracy: float) -> Pace:
    """From the times of rounds: of the clock, and of the processor."""
    (start, used), (end, used_at_end) = stamps[0], stamps[-1]
    rounds = len(stamps) - 1
    fast = statistics.quantiles((b - a for (a, _), (b, _) in pairwise(stamps)), n=10)[0]
    return Pace(rounds / (end - start), 1 / fast, 1000 * (used_at_end - used) / rounds, accuracy)


def ours(gradients: str, rule: str, args: argparse.Namespace) -> Pace:
    """A run of ours, in this process."""
    stamps = list[tuple[float, float]]()

    def observe(record: RoundRecord) -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as output:
        config = configuration(rule, args, output=output, simulate={"gradients": gradients})
        result = run(config, observe=observe, note=lambda text: print(text, file=sys.stderr))
    return pace(stamps[WARM_UP:-1], result.accuracy or 0.0)  # the last round is evaluated


def why_no_byzfl() -> str | None:
    """A sentence where byzfl cannot be asked; its own import is avoided, as it needs torchvision."""
    spec = find_spec("byzfl")
    if spec is None:
        return "byzfl is not installed, so its loop is left out. Try pip install --no-deps byzfl scipy."
    sys.modules.setdefault("byzfl", module_from_spec(spec))
    try:
        importlib.import_module("byzfl.fed_framework")
    except ImportError as error:
        return f"byzfl cannot be imported, so its loop is left out: {error}."
    return None


def byzfl(threads: int, rule: str, args: argparse.Namespace) -> Pace:
    """The loop of ByzFL's documentation over its clients, its attackers and its server."""
    framework: Any = importlib.import_module("byzfl.fed_framework")
    config = configuration(rule, args)
    dataset = fit_dataset(config.data.load(), config.loss)
    models: Any = importlib.import_module("byzfl.fed_framework.models")
    models.perceptron = lambda: build_model(config.model, dataset, config.seed)  # it finds models by name
    honest = args.workers - args.attackers
    torch.manual_seed(config.seed)
    torch.set_num_threads(threads)
    common = {"model_name": "perceptron", "device": "cpu"}
    clients = [
        framework.Client(
            {
                **common,
                "loss_name": "CrossEntropyLoss",
                "LabelFlipping": False,
                "nb_labels": 10,
                "momentum": config.worker.momentum,
                "store_per_client_metrics": False,
                "training_dataloader": batches(dataset, share, config.worker.batch_size),
            }
        )
        for share in deal_samples(config.partition, dataset, honest, config.seed)
    ]
    *mixings, name = rule.split("+")
    targets = cast("Any", dataset.test_y)
    test = torch.utils.data.TensorDataset(dataset.prepared(dataset.test_x, CPU), targets)
    server = framework.Server(
        {
            **common,
            "optimizer_name": "SGD",
            "learning_rate": config.optimizer.lr,
            "weight_decay": 0.0,
            "milestones": [],
            "learning_rate_decay": 1.0,
            "test_loader": torch.utils.data.DataLoader(test, batch_size=128),
            "aggregator_info": {"name": name, "parameters": {"f": args.f}},
            "pre_agg_list": [{"name": mixing, "parameters": {"f": args.f}} for mixing in mixings],
        }
    )
    attack = "SignFlipping" if args.attackers else "NoAttack"
    attackers = framework.ByzantineClient({"name": attack, "f": args.attackers, "parameters": {}})
    stamps = list[tuple[float, float]]()
    for _ in range(args.rounds):
        parameters = server.get_dict_parameters()
        for client in clients:
            client.set_model_state(parameters)
            client.compute_gradients()
        vectors = [client.get_flat_gradients_with_momentum() for client in clients]
        server.update_model_with_gradients(vectors + attackers.apply_attack(vectors))
        stamps.append((time.perf_counter(), time.process_time()))
    torch.set_num_threads(1)
    return pace(stamps[WARM_UP:], server.compute_test_accuracy())


def batches(dataset: Dataset, share: torch.Tensor, size: int) -> Any:
    """A loader of some samples, as ByzFL makes them."""
    images, labels = cast("Any", dataset.train_x), cast("Any", dataset.train_y)
    samples = torch.utils.data.TensorDataset(dataset.prepared(images[share], CPU), labels[share])
    return torch.utils.data.DataLoader(samples, batch_size=size, shuffle=True)


def whole_rounds(rule: str, args: argparse.Namespace, with_byzfl: bool) -> dict[str, list[Pace]]:
    """The paces of every way, which take turns."""
    ways: dict[str, Way] = {
        "exact": lambda: ours("exact", rule, args),
        "batched": lambda: ours("batched", rule, args),
    }
    if with_byzfl:
        ways["byzfl"] = lambda: byzfl(1, rule, args)
        if args.threads > 1:
            ways[f"byzfl, {args.threads} threads"] = lambda: byzfl(args.threads, rule, args)
    found: dict[str, list[Pace]] = {name: [] for name in ways}
    for repeat in range(args.repeats):
        for name, way in ways.items():
            found[name].append(way())
            print(
                f"{rule}, turn {repeat + 1}, {name}: {found[name][-1].rounds_per_second:.1f} rounds/s",
                file=sys.stderr,
            )
    return found


# ---- the gradients of a round


def round_of_gradients(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds for the vectors of a round of the CNN, and for one pass of as many samples."""
    settings = [f"data.cifar10.path={args.cifar10}", "data.cifar10.train_limit=5000"]
    config = load(None, [*settings, "data.cifar10.test_limit=100", "model=cnn", f"workers={args.workers}"])
    torch.set_num_threads(args.threads)
    exact = WorkerCompute(task(config))
    batched = BatchedCompute(WorkerCompute(task(config)))
    parameters = exact.initial()
    dataset, names = exact.dataset, config.worker_names
    model = build_model(config.model, dataset, config.seed)
    samples = config.workers * config.worker.batch_size
    images, labels = cast("Any", dataset.train_x), cast("Any", dataset.train_y)
    x, y = dataset.prepared(images[:samples], CPU), labels[:samples]

    def plain(round: int) -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()

    ways: dict[str, Callable[[int], object]] = {
        "one pass": plain,
        "exact": lambda round: exact.vectors(names, round, parameters),
        "batched": lambda round: batched.vectors(names, round, parameters),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(1 + args.passes):
        for name, way in ways.items():
            start = time.perf_counter()
            way(round)
            found[name].append(time.perf_counter() - start)
    torch.set_num_threads(1)
    return {name: seconds[1:] for name, seconds in found.items()}


# ---- the report


HEADING = ("rule", "way", "rounds/s", "undisturbed", "x exact", "x byzfl", "CPU ms", "accuracy, %")


def rows_of_rounds(found: Mapping[str, Mapping[str, Sequence[Pace]]]) -> Iterator[tuple[str, ...]]:
    """The cells of the table; ratios are those of undisturbed rounds, to the better of ByzFL's ways."""
    for rule, ways in found.items():
        best = {name: statistics.median(p.undisturbed for p in paces) for name, paces in ways.items()}
        theirs = max((rate for name, rate in best.items() if name.startswith("byzfl")), default=None)
        for name, paces in ways.items():
            yield (
                rule,
                name,
                f"{statistics.median(p.rounds_per_second for p in paces):.1f}",
                f"{best[name]:.1f}",
                f"{best[name] / best['exact']:.2f}",
                "-" if theirs is None else f"{best[name] / theirs:.2f}",
                f"{statistics.median(p.cpu for p in paces):.1f}",
                f"{100 * statistics.mean(p.accuracy for p in paces):.1f}",
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="+", default=["TrMean"], help="as ByzFL names them, or NNM+TrMean")
    parser.add_argument("--workers", type=int, default=15, help="n, those that attack among them")
    parser.add_argument("--f", type=int, default=3)
    parser.add_argument("--attackers", type=int, default=0, help="they flip the sign of the mean")
    parser.add_argument(
        "--rounds", type=int, default=120, help=f"of a run; the first {WARM_UP} are not timed"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns; medians are reported")
    parser.add_argument(
        "--threads", type=int, default=2, help="of ByzFL's loop besides one, and with --cifar10"
    )
    parser.add_argument("--cifar10", metavar="PATH", help="its parquet files")
    parser.add_argument("--passes", type=int, default=15, help="rounds with --cifar10")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    args = parser.parse_args()
    if args.rounds < WARM_UP + 10:
        parser.error(f"argument --rounds: should be at least {WARM_UP + 10}")
    return args


def main() -> None:
    args = arguments()
    missing = why_no_byzfl()
    if missing:
        print(missing, file=sys.stderr)
    where = machine()
    rounds = {rule: whole_rounds(rule, args, not missing) for rule in args.rules}
    print("\n".join(align([HEADING, *rows_of_rounds(rounds)], left=(0, 1))))
    gradients = round_of_gradients(args) if args.cifar10 else {}
    if gradients:
        medians = {name: statistics.median(seconds) for name, seconds in gradients.items()}
        cells = [(n, f"{1000 * s:.1f}", f"{s / medians['one pass']:.2f}") for n, s in medians.items()]
        print("\n".join(["", *align([("gradients of a round", "ms", "x one pass"), *cells], left=(0,))]))
    if args.json:
        report = {
            "machine": where | {"load_at_end": machine_load()},
            "byzfl": None if missing else version("byzfl"),
            "settings": {k: v for k, v in vars(args).items() if k not in ("cifar10", "json")},
            "rounds": {
                r: {n: [asdict(p) for p in ps] for n, ps in ways.items()} for r, ways in rounds.items()
            },
            "gradients": gradients,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
