"""Where the memory of a reduction over ranks goes: what gloo and passes over gradients take by themselves.

    python benchmarks/ddp_memory.py --json benchmarks/results/ddp-memory-HARDWARE.json

Each operation runs on vectors of d float32 that are there before, on ranks on this machine, once to warm up
and once to be measured: the most resident memory of rank 0 while it runs, less that before, in vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as processes  # noqa: E402
from ddp import resident, settle  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from varangian.aggregators.rows import Rows  # noqa: E402
from varangian.bench.machine import machine  # noqa: E402
from varangian.torch import robust  # noqa: E402
from varangian.torch.columns import squared_distances, sum_of_bits  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--numbers", type=int, default=11_000_000, help="d; by default 11 million")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "d": args.numbers, "ranks": []}
    for n in args.ranks:
        with tempfile.TemporaryDirectory(prefix="varangian-ddp-") as folder:
            processes.spawn(on_rank, (n, args.numbers // n * n, folder), nprocs=n)
            one = json.loads((Path(folder) / "found.json").read_text())
        for name, vectors in one.items():
            print(f"n = {n}, {name:42} {vectors:5.2f} d", flush=True)
        found["ranks"].append({"n": n, **one})
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def on_rank(rank: int, n: int, d: int, folder: str) -> None:
    """All operations on one rank, in a process of its own."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=n)
    found = {name: vectors(act, d) for name, act in operations(rank, n, d).items()}
    for name, hooked in (("a step of DDP", False), ("a step of DDP with the hook", True)):
        found[name] = vectors(step_of(d, hooked, n), d, kept=True)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def operations(rank: int, n: int, d: int) -> dict[str, Callable[[], object]]:
    """By name, on vectors that are there."""
    one, other, shard = torch.ones(d), torch.ones(d), torch.ones(d // n)
    parts = one.split(d // n)
    others = [place for place in range(n) if place != rank]

    def exchange() -> None:
        began = [dist.irecv(parts[place], group_src=place) for place in others]
        began += [dist.isend(parts[rank], group_dst=place) for place in others]
        for work in began:
            assert work is not None
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(one),
        "all_to_all_single": lambda: dist.all_to_all_single(other, one),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(other, shard),
        "isend and irecv of shards in their place": exchange,
        "sum of bits as integers, at once": lambda: one.view(torch.int32).sum(dtype=torch.int64),
        "sum of bits as integers, in blocks": lambda: sum_of_bits(one),
        "squared distance in float64, at once": lambda: (one - other).square_().sum(dtype=torch.float64),
        "squared distance in float64, in blocks": lambda: squared_distances(Rows((one,)), other),
    }


class Sum(torch.nn.Module):
    """The sum of its parameters."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.ones(d // 8) for _ in range(8))

    def forward(self) -> torch.Tensor:
        return torch.stack([part.sum() for part in self.parts]).sum()


def step_of(d: int, hooked: bool, n: int) -> Callable[[], object]:
    """A step of a model whose gradients take no memory but that of buckets."""
    wrapped = DistributedDataParallel(Sum(d), gradient_as_bucket_view=True)
    if hooked:
        robust(wrapped, "nnm+trimmed_mean", int(n > 2), on_suspect=print)
    return lambda: wrapped().backward()


def vectors(act: Callable[[], object], d: int, kept: bool = False) -> float:
    """Most memory beyond that before, in vectors; with `kept` also what stays from the first time on."""
    settle()
    before = resident("VmRSS")
    act()
    act()
    settle()
    if not kept:
        before = resident("VmRSS")
    dist.barrier()
    act()
    return round((resident("VmHWM") - before) / (4 * d), 2)


if __name__ == "__main__":
    main()
