"""Training in which one rank is wrong: the part of `ddp.py` that measures held-out loss and accuracy.

A cell is one training: a task, DDP or FSDP, a rule, a fault, a seed. The plain average is a cell of its
own, through the all-reduce of DDP, or of FSDP over replicas. The wrong rank is always the last one, and
spoils its own gradient before anybody has seen it: in a communication hook, or with FSDP before the
reduce-scatter, so that it spoils the gradient of its replica. `gathered` has no ranks: the gradients of
all are computed in one process, which is a seventh of the work, and given to the rule, whose answer is that
of the hook to 1e-6. It says nothing about who is named.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from varangian.bench.machine import load, machine
from varangian.torch import Reduction, Step, robust_fsdp, robust_hook

FAULTS = ("none", "nan", "exponent", "sign_flip", "x1000", "stale", "alie")
AVERAGE = "average"
"""In the place of a rule: what DDP and FSDP do."""


@dataclass(frozen=True)
class Cell:
    """One training; `rows` is the number of gradients that meet, ranks or replicas."""

    task: str
    wrap: str
    rows: int
    shards: int
    rule: str
    f: int
    momentum: float
    fault: str
    seed: int
    steps: int
    batch: int
    leave_out: bool = False
    """Whether ranks that are opposed to the others are left out."""

    @property
    def ranks(self) -> int:
        return self.rows * self.shards


class Task(Protocol):
    """A model, its data, and how it is trained."""

    rate: float

    def build(self) -> nn.Module: ...
    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]: ...
    def held_out(self) -> tuple[Tensor, Tensor]: ...
    def optimizer(self, model: nn.Module, momentum: float) -> torch.optim.Optimizer: ...


class Images:
    """A small CNN on CIFAR-10, by SGD with momentum."""

    rate = 0.07

    def __init__(self, kept: Path) -> None:
        self.data: dict[str, Any] = torch.load(kept, mmap=True)
        self.shift, self.scale = (self.data[name].view(1, 3, 1, 1) for name in ("shift", "scale"))

    @staticmethod
    def keep(path: Path, data: str | None) -> None:
        """Decode once, for all ranks."""
        from varangian.worker.data.cifar10 import Cifar10

        if data is None:
            raise SystemExit("--data: is needed for the task cnn, the folder of CIFAR-10")
        found = Cifar10(data, train_limit=20_000).load()
        kept: dict[str, Any] = {
            name: getattr(found, name) for name in ("train_x", "train_y", "test_x", "test_y")
        }
        kept |= {name: torch.tensor(getattr(found, name)) for name in ("shift", "scale")}
        torch.save(kept, path)

    def build(self) -> nn.Module:
        from varangian.worker.training.models import Cnn

        return Cnn(width=8).build((3, 32, 32), 10)

    def scaled(self, images: Tensor) -> Tensor:
        return (images.float() - self.shift) / self.scale

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.data["train_y"]), (size,), generator=rng)
        return self.scaled(self.data["train_x"][chosen]), self.data["train_y"][chosen].long()

    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.scaled(self.data["test_x"]), self.data["test_y"].long()

    def optimizer(self, model: nn.Module, momentum: float) -> torch.optim.Optimizer:
        if momentum:  # that of the ranks; the steps are as long as with the optimizer's
            return torch.optim.SGD(model.parameters(), lr=self.rate / (1 - momentum))
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9)


class Characters:
    """The GPT of characters of `examples/char-gpt`, on the documentation, by AdamW."""

    rate = 3e-3

    def __init__(self, kept: Path) -> None:
        self.data: dict[str, Tensor] = torch.load(kept)

    @staticmethod
    def keep(path: Path, data: str | None) -> None:
        del data
        x, y, held_x, held_y = gpt().documentation(test=10_000)
        torch.save({"x": x, "y": y, "held_x": held_x, "held_y": held_y}, path)
        digest = hashlib.blake2b(x.numpy().tobytes(), digest_size=4).hexdigest()
        print(f"{x.numel():,} characters, {held_x.numel():,} held out, text {digest}", flush=True)

    def build(self) -> nn.Module:
        return cast("nn.Module", gpt().build())

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.data["x"]), (size,), generator=rng)
        return self.data["x"][chosen], self.data["y"][chosen]

    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.data["held_x"], self.data["held_y"]

    def optimizer(self, model: nn.Module, momentum: float) -> torch.optim.Optimizer:
        rate, beta = (self.rate / 3, 0.0) if momentum else (self.rate, 0.9)
        return torch.optim.AdamW(model.parameters(), lr=rate, betas=(beta, 0.95))


TASKS: dict[str, type[Images] | type[Characters]] = {"cnn": Images, "gpt": Characters}


def gpt() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "char-gpt"))
    import gpt as module  # type: ignore[import-not-found]

    return module


class Wrong:
    """What a wrong rank does to its gradient.

    Args:
        fault: its name.
        bad: whether this rank is the wrong one.
        seed: of the steps in which it strikes.
    """

    def __init__(self, fault: str, bad: bool, seed: int) -> None:
        self.fault, self.bad = fault, bad
        self.rng = torch.Generator().manual_seed(seed)
        self.before: dict[int, Tensor] = {}
        self.strikes = False

    def next_step(self) -> None:
        self.strikes = bool(torch.rand((), generator=self.rng) < 0.1)

    def spoil(self, gradient: Tensor, key: int) -> None:
        """In its place. Every rank calls it, with the same part of its gradient."""
        if self.fault == "alie":
            self.a_little(gradient)
        elif not self.bad:
            return
        elif self.fault == "nan" and self.strikes:
            gradient[0] = torch.nan
        elif self.fault == "exponent":
            bits = gradient.view(torch.int32)[::1000]
            bits |= 1 << 30  # the highest of an exponent
        elif self.fault == "sign_flip":
            gradient.neg_()
        elif self.fault == "x1000":
            gradient.mul_(1000)
        elif self.fault == "stale":
            if key in self.before:
                gradient.copy_(self.before[key])
            else:
                self.before[key] = gradient.clone()

    def a_little(self, gradient: Tensor) -> None:
        """A Little Is Enough, with all gradients at hand: mean - 1.5 standard deviations."""
        rows = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, gradient)
        if self.bad:
            honest = torch.stack(rows[:-1])
            gradient.copy_(honest.mean(0) - 1.5 * honest.std(0))


class Hook:
    """Spoils a bucket of DDP, and then reduces it by the rule, or by the average of DDP."""

    def __init__(self, wrong: Wrong, reduction: Reduction | None) -> None:
        self.wrong, self.reduction = wrong, reduction

    def take(self, bucket: Any) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        # Buckets are made anew after the first step: a stale gradient is that of the second one.
        self.wrong.spoil(buffer, hash(tuple(map(id, bucket.parameters()))))
        if self.reduction is not None:
            return robust_hook(self.reduction, bucket)
        work = dist.all_reduce(buffer, async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0].div_(dist.get_world_size()))


def wrong_hook(state: Hook, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    return state.take(bucket)


# DDP compares the annotations of a hook with the types themselves, not with their names.
wrong_hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


class Spoiled(DefaultReduceScatter):
    """The reduce-scatter of FSDP, of what a rank has spoiled."""

    def __init__(self, wrong: Wrong, key: int) -> None:
        self.wrong, self.key = wrong, key

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *args: Any, **more: Any) -> Any:
        self.wrong.spoil(input_tensor, self.key)
        return super().__call__(output_tensor, input_tensor, *args, **more)


class Naming:
    """When the wrong rank or replica was seen, and when it was named."""

    def __init__(self, row: int) -> None:
        self.row = row
        self.found: dict[str, Any] = {}
        self.at = 0
        self.without_update = 0

    def look(self, step: Step) -> None:
        self.at = step.step
        self.without_update += step.error is not None
        if self.row in step.faulty:
            self.found.setdefault("seen", step.step)

    def suspect(self, about: Any) -> None:
        right = about.rank == self.row
        if self.found.setdefault("named" if right else "wrongly", self.at) == self.at:
            self.found.setdefault("reason" if right else "wrong_reason", about.reason)

    def state(self) -> dict[str, Any]:
        return self.found | ({"without_update": self.without_update} if self.without_update else {})


def train(cell: Cell, task: Task, place: int) -> dict[str, Any]:
    """The held-out loss and accuracy at the end, and when the last row was named."""
    began = time.perf_counter()
    torch.manual_seed(cell.seed)
    naming = Naming(cell.rows - 1)
    wrong = Wrong(cell.fault, place == cell.ranks - 1, cell.seed)
    told: dict[str, Any] = {
        "momentum": cell.momentum,
        "seed": cell.seed,
        "on_step": naming.look,
        "on_suspect": naming.suspect,
        "on_error": "nan",
        "leave_out_opposed": cell.leave_out,
    }
    wrap = sharded if cell.wrap == "fsdp" else replicated
    model, reduction = wrap(cell, task.build(), wrong, told)
    learn = task.optimizer(model, cell.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(learn, lambda at: 1 - at / cell.steps)
    rng = torch.Generator().manual_seed(1000 * cell.seed + place)
    done = 0
    for done in range(1, cell.steps + 1):
        wrong.next_step()
        inputs, targets = task.batch(cell.batch, rng)
        model.zero_grad()
        scores = model(inputs)
        cross_entropy(scores.flatten(0, -2), targets.flatten()).backward()
        if reduction is None or reduction.last is None or reduction.last.error is None:
            learn.step()  # there is no update where too many gradients are not finite
        schedule.step()
        if done % 20 == 0 and cell.rule == AVERAGE and lost(model):
            break
    held = {name: None if not math.isfinite(x) else round(x, 5) for name, x in judged(model, task).items()}
    return {
        **asdict(cell),
        **held,
        **naming.state(),
        "done": done,
        "seconds": round(time.perf_counter() - began, 1),
    }


def gathered(cell: Cell, task: Task) -> dict[str, Any]:
    """As `train`, with all gradients in this process."""
    began = time.perf_counter()
    torch.manual_seed(cell.seed)
    model = task.build()
    parameters = [*model.parameters()]
    learn = task.optimizer(model, cell.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(learn, lambda at: 1 - at / cell.steps)
    streams = [torch.Generator().manual_seed(1000 * cell.seed + place) for place in range(cell.rows)]
    wrong = Wrong(cell.fault, True, cell.seed)
    reduction = None if cell.rule == AVERAGE else Reduction(cell.rule, cell.f)
    momenta: Tensor | None = None
    last: Tensor | None = None
    for step in range(cell.steps):
        wrong.next_step()
        found: list[Tensor] = []
        for rng in streams:
            inputs, targets = task.batch(cell.batch, rng)
            model.zero_grad()
            cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
            found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        rows = torch.stack(found)
        if cell.fault == "alie":
            rows[-1] = rows[:-1].mean(0) - 1.5 * rows[:-1].std(0)
        else:
            wrong.spoil(rows[-1], 0)
        if reduction is None:
            last = rows.mean(0)
        else:
            if cell.momentum:
                momenta = torch.zeros_like(rows) if momenta is None else momenta
                sound = rows.isfinite().all(1)
                momenta[sound] = cell.momentum * momenta[sound] + (1 - cell.momentum) * rows[sound]
                rows[sound] = momenta[sound]
            last = reduction.aggregator(rows, last, reduction.generator(step)).vector
        parts = last.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        learn.step()
        schedule.step()
    held = judged(model, task, alone=True)
    return {
        **asdict(cell),
        **{name: round(x, 5) if math.isfinite(x) else None for name, x in held.items()},
        "done": cell.steps,
        "seconds": round(time.perf_counter() - began, 1),
    }


def lost(model: nn.Module) -> bool:
    """Whether parameters are not finite, on any rank; all call it."""
    sums = torch.stack([local(p.detach()).sum() for p in model.parameters()]).sum().reshape(1)
    dist.all_reduce(sums)
    return not bool(sums.isfinite())


def local(tensor: Tensor) -> Tensor:
    shard = getattr(tensor, "to_local", None)
    return tensor if shard is None else shard()


def replicated(
    cell: Cell, module: nn.Module, wrong: Wrong, told: dict[str, Any]
) -> tuple[nn.Module, Reduction | None]:
    model = DistributedDataParallel(module)
    reduction = None if cell.rule == AVERAGE else Reduction(cell.rule, cell.f, **told)
    model.register_comm_hook(Hook(wrong, reduction), wrong_hook)
    return model, reduction


def sharded(
    cell: Cell, module: nn.Module, wrong: Wrong, told: dict[str, Any]
) -> tuple[nn.Module, Reduction | None]:
    mesh = init_device_mesh("cpu", (cell.rows, cell.shards), mesh_dim_names=("replicas", "shards"))
    over = mesh if cell.rule == AVERAGE else mesh["shards"]
    for block in getattr(module, "blocks", ()):
        fully_shard(block, mesh=over)
    fully_shard(module, mesh=over)
    for key, part in enumerate(part for part in module.modules() if isinstance(part, FSDPModule)):
        part.set_custom_reduce_scatter(Spoiled(wrong, key))
    if cell.rule == AVERAGE:
        return module, None
    return module, robust_fsdp(module, mesh["replicas"], cell.rule, cell.f, **told)


def judged(model: nn.Module, task: Task, alone: bool = False) -> dict[str, float]:
    """Held-out loss and accuracy in %; each rank takes a part of the data, or does it alone."""
    inputs, targets = task.held_out()
    n, place = (1, 0) if alone else (dist.get_world_size(), dist.get_rank())
    mine = slice(place * len(inputs) // n, (place + 1) * len(inputs) // n)
    with torch.no_grad():
        scores, right = model(inputs[mine]).flatten(0, -2), targets[mine].flatten()
        counts = torch.tensor(
            [
                float(cross_entropy(scores, right, reduction="sum")),
                float((scores.argmax(1) == right).sum()),
                len(right),
            ],
            dtype=torch.float64,
        )
    if not alone:
        dist.all_reduce(counts)
    loss, hits, count = counts.tolist()
    return {"loss": loss / count, "accuracy": 100 * hits / count}


def key_of(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(name, field.default) for name, field in Cell.__dataclass_fields__.items())


def kept(path: Path | None) -> list[dict[str, Any]]:
    """Cells of earlier calls."""
    return json.loads(path.read_text())["cells"] if path is not None and path.exists() else []


def keep(path: Path | None, about: dict[str, Any], cell: dict[str, Any]) -> None:
    """Add a cell to the file, which is whole at any time."""
    if path is None:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        found = {"machine": about, "cells": [*kept(path), cell]}
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(found, indent=1).replace("\n   ", " ").replace("\n  }", " }") + "\n")
        beside.replace(path)
    finally:
        os.close(folder)


def sentence(cell: dict[str, Any]) -> str:
    what = f"{cell['task']} {cell['wrap']} {cell['rows']}x{cell['shards']} seed {cell['seed']}"
    rule = cell["rule"] + (f" momentum {cell['momentum']}" if cell["momentum"] else "")
    rule += " without opposed" if cell["leave_out"] else ""
    loss = "lost" if cell["loss"] is None else f"loss {cell['loss']:.4f}, {cell['accuracy']:.2f} %"
    named = f", named at {cell['named']}" if "named" in cell else ""
    wrongly = f", ANOTHER NAMED at {cell['wrongly']}" if "wrongly" in cell else ""
    return f"{what}: {cell['fault']}, {rule}: {loss}{named}{wrongly}, {cell['seconds']} s"


def carried_out(cells: Sequence[Cell], place: int, folder: Path, path: Path | None) -> None:
    """All cells, one after the other, on ranks that have met; or this program's share of them."""
    alone = cells[0].wrap == "gathered"
    about = machine() if alone or place == 0 else {}
    tasks = {name: TASKS[name](folder / f"{name}.pt") for name in {cell.task for cell in cells}}
    for cell in cells[place :: dist.get_world_size()] if alone else cells:
        found = gathered(cell, tasks[cell.task]) if alone else train(cell, tasks[cell.task], place)
        if alone or place == 0:
            found |= {"commit": about["commit"], "load": load()}
            keep(path, about, found)
            print(sentence(found), flush=True)
        if not alone:
            dist.barrier()
