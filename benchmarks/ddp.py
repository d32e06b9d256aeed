"""What the robust communication hook costs beside DDP, and what it is worth when one rank is wrong.

    python benchmarks/ddp.py speed --json benchmarks/results/ddp-speed-HARDWARE.json
    python benchmarks/ddp.py speed --rate 1gbit
    python benchmarks/ddp.py faults --data DIR --json benchmarks/results/ddp-faults-HARDWARE.json
    python benchmarks/ddp.py faults --task gpt --seeds 1 2
    python benchmarks/ddp.py faults --wrap fsdp --rows 4 --shards 2 --data DIR
    python benchmarks/ddp.py faults --wrap gathered --seeds 1 2 3 4 --data DIR

`speed`: ranks on this machine over gloo, by turns with the all-reduce of DDP, with the hook, and with one
that gathers all gradients everywhere and aggregates them there. As root on Linux they have a network of
their own (`unshare --net`), whose loopback counts their bytes and, with `--rate`, lets no more through than
that, for all ranks together. Memory is the most that a rank of a program with that one way takes beyond the
model and its gradients, once buckets are settled.

`faults`: a small CNN on CIFAR-10, or a GPT of characters, the last rank wrong in one way after the other;
held-out loss and accuracy, and in which step the rank was named, beside the average of DDP or FSDP. Each
cell is written when it ends, and cells that the file has are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from varangian.aggregators import aggregator_from  # noqa: E402
from varangian.bench.machine import load, machine  # noqa: E402
from varangian.torch import Reduction, robust_hook  # noqa: E402

WAYS = ("ddp", "robust", "gather")
FAULTS = ("none", "nan", "exponent", "sign_flip", "x1000", "stale", "alie")
APART = 0x40000000
"""`CLONE_NEWNET` of unshare(2)."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "faults"])
    parser.add_argument("--ranks", type=int, nargs="+", help="speed: by default 2 4 8")
    parser.add_argument("--aggregator", default="nnm+trimmed_mean", help="speed: the rule")
    parser.add_argument(
        "--hidden", type=int, default=5368, help="speed: 2048 x this is most of d; by default 5368"
    )
    parser.add_argument("--turns", type=int, default=5, help="speed: turns of each way; by default 5")
    parser.add_argument(
        "--steps", type=int, help="of a turn, by default 3; of a run with faults, by default 300"
    )
    parser.add_argument("--rate", help="speed: of the loopback, as 1gbit; by default it is not limited")
    parser.add_argument("--task", nargs="+", choices=["cnn", "gpt"], default=["cnn"])
    parser.add_argument("--wrap", choices=["ddp", "fsdp", "gathered"], default="ddp")
    parser.add_argument("--rows", type=int, default=8, help="faults: ranks, or replicas; by default 8")
    parser.add_argument("--shards", type=int, default=1, help="faults: ranks of a replica; by default 1")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=["average", "nnm+trimmed_mean"],
        help="faults: by default average, which is DDP's, and nnm+trimmed_mean",
    )
    parser.add_argument("-f", type=int, default=1, help="faults: of the rules; by default 1")
    parser.add_argument(
        "--momentum", type=float, default=0.0, help="faults: of ranks, in the place of the optimizer's"
    )
    parser.add_argument("--leave-out-opposed", action="store_true", help="faults: as of the hook")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, default=16, help="faults: of a rank; by default 16")
    parser.add_argument("--jobs", type=int, default=2, help="faults: trainings at a time with gathered")
    parser.add_argument("--data", help="faults: the folder of CIFAR-10, for the task cnn")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.rank:
        rank(args)
        return
    if args.what == "faults":
        faults(args)
        return
    found: dict[str, Any] = {"machine": machine()}
    settings = {name: value for name, value in vars(args).items() if value is not None and name != "json"}
    found["settings"] = {name: str(value) for name, value in settings.items()}
    found["network"] = network_apart(args.rate)
    print(found["network"])
    found["ranks"] = []
    for n in args.ranks or (2, 4, 8):
        one = {"n": n, **on_ranks(args, n)}
        one["memory_vectors"] = {way: on_ranks(args, n, "--way", way)["vectors"] for way in WAYS}
        print_speed(one)
        found["ranks"].append(one)
    found["machine"]["load_at_end"] = load()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def network_apart(rate: str | None) -> str:
    """Give this process and its children a network of their own, if that is allowed; says what was done."""
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(APART):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        if rate:
            shape = f"tc qdisc add dev lo root tbf rate {rate} burst 256kb latency 50ms"
            subprocess.run(shape.split(), check=True)
    except (OSError, AttributeError, subprocess.CalledProcessError) as error:
        if rate:
            raise SystemExit(f"--rate: needs root and Linux with iproute2 ({error})") from error
        return f"the loopback of this machine, bytes of other programs count too ({error})"
    return f"a loopback of their own{f', {rate} in all' if rate else ''}"


def faults(args: argparse.Namespace) -> None:
    """All cells that the file lacks, on ranks that are started once."""
    import ddp_faults

    cells = [
        ddp_faults.Cell(
            task,
            args.wrap,
            args.rows,
            args.shards,
            rule,
            0 if rule == ddp_faults.AVERAGE else args.f,
            0.0 if rule == ddp_faults.AVERAGE else args.momentum,
            fault,
            seed,
            args.steps or 300,
            args.batch,
            args.leave_out_opposed and rule != ddp_faults.AVERAGE,
        )
        for task in args.task
        for seed in args.seeds
        for fault in args.faults
        for rule in args.rules
    ]
    done = {ddp_faults.key_of(cell) for cell in ddp_faults.kept(args.json)}
    missing = [asdict(cell) for cell in cells if ddp_faults.key_of(asdict(cell)) not in done]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="varangian-ddp-") as folder:
        for task in args.task:
            ddp_faults.TASKS[task].keep(Path(folder) / f"{task}.pt", args.data)
        (Path(folder) / "cells.json").write_text(json.dumps(missing))
        programs = min(args.jobs, len(missing)) if args.wrap == "gathered" else args.rows * args.shards
        start(programs, folder, *sys.argv[1:])


def on_ranks(args: argparse.Namespace, n: int, *more: str) -> dict[str, Any]:
    """What rank 0 of n has found."""
    with tempfile.TemporaryDirectory(prefix="varangian-ddp-") as folder:
        given = [word for word in sys.argv[1:] if word != "--json"]
        if args.json:
            given.remove(str(args.json))
        start(n, folder, *given, *more)
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
        return found


def start(n: int, folder: str, *words: str) -> None:
    """Start this program with these arguments as n ranks, and wait for their end."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *words, "--rank"]
    programs = [
        subprocess.Popen([*command, str(place), str(n), folder], env=environment) for place in range(n)
    ]
    codes = [program.wait() for program in programs]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def rank(args: argparse.Namespace) -> None:
    """One rank, in a process of its own."""
    place, n, folder = int(args.rank[0]), int(args.rank[1]), Path(args.rank[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=place, world_size=n)
    found: dict[str, Any] = {}
    if args.what == "faults":
        import ddp_faults

        cells = [ddp_faults.Cell(**cell) for cell in json.loads((folder / "cells.json").read_text())]
        ddp_faults.carried_out(cells, place, folder, args.json)
    elif args.way:
        found = {"vectors": memory(args, args.way, place, n)}
    else:
        found = speed(args, place, n)
    if place == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def faulty(n: int) -> int:
    return 1 if n > 2 else 0


class Gather:
    """A hook that gives every rank all gradients, and aggregates them there with the last bucket."""

    def __init__(self, spec: str, f: int) -> None:
        self.aggregator = aggregator_from(spec, "aggregator", f=f)
        self.pieces: list[tuple[list[Tensor], dist.Work, torch.futures.Future[Tensor]]] = []

    def take(self, bucket: Any) -> torch.futures.Future[Tensor]:
        if bucket.index() == 0:
            self.pieces = []
        mine = bucket.buffer()
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        work = dist.all_gather(rows, mine, async_op=True)
        assert work is not None
        self.pieces.append((rows, work, torch.futures.Future()))
        if bucket.is_last():
            for _, gathered, _ in self.pieces:
                gathered.wait()
            whole = [torch.cat(parts) for parts in zip(*(rows for rows, _, _ in self.pieces), strict=True)]
            update = self.aggregator(whole, rng=torch.Generator().manual_seed(1)).vector
            sizes = [rows[0].numel() for rows, _, _ in self.pieces]
            for (_, _, future), part in zip(self.pieces, update.split(sizes), strict=True):
                future.set_result(part)
        return self.pieces[-1][2]


def gather_hook(state: Gather, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    return state.take(bucket)


# DDP compares the annotations of a hook with the types themselves, not with their names.
gather_hook.__annotations__ = {
    "bucket": dist.GradBucket,
    "return": torch.futures.Future[torch.Tensor],
}


def network(hidden: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1024, hidden), nn.ReLU(), nn.Linear(hidden, 1024))


def wrapped(args: argparse.Namespace, module: nn.Module, way: str, n: int) -> DistributedDataParallel:
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)
    if way == "robust":
        model.register_comm_hook(Reduction(args.aggregator, faulty(n), on_suspect=print), robust_hook)
    elif way == "gather":
        model.register_comm_hook(Gather(args.aggregator, faulty(n)), gather_hook)
    return model


def one_step(model: nn.Module, place: int, at: int) -> None:
    rng = torch.Generator().manual_seed(1000 * at + place)
    model.zero_grad(set_to_none=False)
    model(torch.randn(2, 1024, generator=rng)).square().mean().backward()


def speed(args: argparse.Namespace, place: int, n: int) -> dict[str, Any]:
    models = {way: wrapped(args, network(args.hidden), way, n) for way in WAYS}
    d = sum(p.numel() for p in models["ddp"].parameters())
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, list[int]] = {way: [] for way in WAYS}
    for turn in range(args.turns + 1):
        for way, model in models.items():
            for at in range(args.steps or 3):
                dist.barrier()
                before, began = bytes_of_loopback(), time.perf_counter()
                one_step(model, place, at)
                took = time.perf_counter() - began
                dist.barrier()
                if turn:  # buckets are made anew after the first step
                    seconds[way].append(took)
                    sent[way].append(bytes_of_loopback() - before)
    medians = {way: statistics.median(took) for way, took in seconds.items()}
    return {
        "d": d,
        "seconds": medians,
        "quartiles": {way: statistics.quantiles(took, n=4) for way, took in seconds.items()},
        "times_ddp": {way: medians[way] / medians["ddp"] for way in WAYS},
        "bytes": {way: statistics.median(counts) for way, counts in sent.items()},
        "ring_all_reduce_bytes": 2 * (n - 1) * 4 * d,
    }


def print_speed(one: dict[str, Any]) -> None:
    for way in WAYS:
        share = one["bytes"][way] / one["ring_all_reduce_bytes"]
        print(
            f"n = {one['n']}, d = {one['d']:,}, {way:6}: {1000 * one['seconds'][way]:7.0f} ms a step, "
            f"{one['times_ddp'][way]:.2f} x ddp, {share:.3f} x the bytes of a ring all-reduce, memory for "
            f"{one['memory_vectors'][way]:.2f} d",
            flush=True,
        )


def bytes_of_loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def memory(args: argparse.Namespace, way: str, place: int, n: int) -> float:
    """Most memory of this rank beyond one step by itself, in vectors of d float32."""
    module = network(args.hidden)
    one_step(module, place, 0)
    settle()
    alone = resident("VmRSS")
    model = wrapped(args, module, way, n)
    for at in range(5):
        if at == 2:  # buckets are made anew after the first step
            settle()
        one_step(model, place, at)
    return (resident("VmHWM") - alone) / (4 * sum(p.numel() for p in module.parameters()))


def settle() -> None:
    """Give back what is free, and forget what the most was."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
