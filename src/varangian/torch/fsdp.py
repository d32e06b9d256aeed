"""Fully sharded models (FSDP2) with a robust rule over their replicas in the place of the all-reduce.

A replica is a row: its ranks hold the shards of one model, with `fully_shard` on the mesh of shards alone.
When the backward pass has written the sharded gradients, the ranks that hold the same shard exchange
columns of it, and one decision is made from the sum over all shards.

n  replicas     d  numbers of the shards of one rank
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from varangian.aggregators import Aggregator
from varangian.torch.reduction import Reduction, after_gradients, backward_pass
from varangian.torch.steps import Step, SuspectRank

AT_ONCE = 1 << 25
"""Bytes of gradients that are exchanged at once, or one tensor if it is larger."""
SMALL = 1 << 20
"""Bytes of gradients up to which modules share a part."""


@dataclass(frozen=True)
class _Shards:
    """Gradients of some parameters as one flat vector, in the place of a bucket of DDP."""

    number: int
    flat: Tensor
    of: list[Tensor]
    last: bool

    def index(self) -> int:
        return self.number

    def buffer(self) -> Tensor:
        return self.flat

    def parameters(self) -> list[Tensor]:
        return self.of

    def is_last(self) -> bool:
        return self.last


@dataclass(frozen=True)
class _Part:
    """Parameters whose gradients are exchanged together: of one module with `fully_shard`, or several."""

    parameters: list[nn.Parameter]
    stand_ins: list[Tensor]
    """Of the shape and type of their shards, without memory."""

    def gradients(self) -> Tensor:
        """Of all of them, flat; zeros where this replica has not used one.

        FSDP writes the gradients of a module one after the other: where they lie so they are not copied.
        """
        found = [_gradient(parameter) for parameter in self.parameters]
        first, at = found[0], found[0].storage_offset()
        storage = first.untyped_storage().data_ptr()
        for each in found:
            if each.untyped_storage().data_ptr() != storage or each.storage_offset() != at:
                return torch.cat(found)
            at += each.numel()
        return first.as_strided((at - first.storage_offset(),), (1,), first.storage_offset())


class _Replicas:
    """Reduces the gradients of a sharded model over its replicas, once after each backward pass."""

    def __init__(self, parts: Sequence[_Part], reduction: Reduction, whole: dist.ProcessGroup) -> None:
        self._parts = parts
        self._reduction = reduction
        self._whole = whole
        self._asked = -1
        """The backward pass after which gradients are reduced."""

    def hook(self, reduced: Tensor) -> None:
        """For `set_all_reduce_hook`: gradients of a module are about to be written."""
        del reduced
        if self._asked != (current := backward_pass()):
            self._asked = current
            # The last callback of FSDP itself may still write gradients.
            after_gradients(self.reduce)

    def reduce(self) -> None:
        """Exchange the gradients, and write the update in their place."""
        used = iter(self._used())
        last = len(self._parts) - 1
        taken: list[tuple[_Part, torch.futures.Future[Tensor]]] = []
        for number, part in enumerate(self._parts):
            bucket = _Shards(number, part.gradients(), part.stand_ins, number == last)
            taken.append((part, self._reduction.take(bucket)))
        for part, future in taken:
            sizes = [each.numel() for each in part.stand_ins]
            for parameter, found in zip(part.parameters, future.value().split(sizes), strict=True):
                if not next(used):
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                here = local(parameter.grad)
                if here.data_ptr() != found.data_ptr():
                    here.copy_(found.view_as(here))

    def _used(self) -> list[bool]:
        """Whether a rank has used each parameter, the same on all ranks.

        An optimizer may change a parameter with a gradient of zeros, as by weight decay, and leaves one
        without a gradient as it is: replicas would become others where only some of them have used it.
        """
        parameters = [parameter for part in self._parts for parameter in part.parameters]
        flags = torch.tensor(
            [parameter.grad is not None for parameter in parameters],
            dtype=torch.uint8,
            device=local(parameters[0]).device,
        )
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._whole)
        return flags.bool().tolist()


def _parts_of(model: nn.Module) -> list[_Part]:
    """All trained parameters in an order and parts that are the same on all ranks.

    Those of a module with `fully_shard` are together, as far as they have one type, and small modules share
    a part.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    of = {id(p): place for place, unit in enumerate(units) for p in unit.parameters()}  # the innermost
    trained = [p for p in model.parameters() if p.requires_grad]
    found: list[list[nn.Parameter]] = []
    before: tuple[int, torch.dtype] | None = None
    size = 0
    for parameter in sorted(trained, key=lambda p: of[id(p)]):
        unit = (of[id(parameter)], parameter.dtype)
        more = parameter.numel() * parameter.element_size() // shards_of(parameter)
        fits = found and before is not None and before[1] is parameter.dtype and size + more <= AT_ONCE
        if not fits or (unit != before and max(size, more) > SMALL):
            found.append([])
            size = 0
        found[-1].append(parameter)
        before, size = unit, size + more
    return [_Part(each, [torch.empty_like(local(p), device="meta") for p in each]) for each in found]


def _group_of(replicas: DeviceMesh | dist.ProcessGroup) -> dist.ProcessGroup:
    if isinstance(replicas, dist.ProcessGroup):
        return replicas
    if not isinstance(cast("object", replicas), DeviceMesh) or replicas.ndim != 1:
        raise ValueError(
            "replicas: should be a mesh of one dimension, that of replicas, as mesh['replicas'], or its "
            f"process group. Found {replicas!r}."
        )
    return replicas.get_group()


def _check_parameter(
    name: str, parameter: nn.Parameter, mesh: DeviceMesh, group: dist.ProcessGroup
) -> None:
    both = {*dist.get_process_group_ranks(group)} & {*cast("list[int]", mesh.mesh.flatten().tolist())}
    if both - {dist.get_rank()}:
        raise ValueError(
            "replicas: should be ranks that hold the same shard of different replicas. Found ranks "
            f"{', '.join(map(str, sorted(both)))}, which hold shards of one replica."
        )
    if parameter.is_meta:
        raise ValueError(
            f"parameters.{name}: should be on a device. Found it on meta: call model.to_empty(device=...) "
            "and initialise the model before."
        )
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise ValueError(
            f"parameters.{name}: should have no hook of register_post_accumulate_grad_hook, as of an "
            "optimizer that steps in the backward pass: gradients are the update only after the pass."
        )


def shards_of(parameter: Tensor) -> int:
    """In how many shards it is."""
    return parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1


def local(tensor: Tensor) -> Tensor:
    """The shard that is here, of a DTensor; a plain tensor itself."""
    return cast("Any", tensor).to_local() if isinstance(tensor, DTensor) else tensor


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient of a shard, flat; zeros where this replica has not used it."""
    if parameter.grad is None:
        return torch.zeros_like(local(parameter).detach()).flatten()
    return local(parameter.grad).flatten()


def robust_fsdp(
    model: nn.Module,
    replicas: DeviceMesh | dist.ProcessGroup,
    aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
    f: int = 1,
    *,
    whole: dist.ProcessGroup | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    log: str | Path | None = None,
    momentum: float = 0.0,
    per_bucket: bool = False,
    suspect_after: int = 10,
    on_suspect: Callable[[SuspectRank], None] | None = None,
    on_error: Literal["raise", "nan"] = "raise",
    weights: Sequence[float] | None = None,
    audit: float = 0.0,
    leave_out_opposed: bool = False,
) -> Reduction:
    """Reduce the gradients of a fully sharded model over its replicas by a robust rule.

    With `mesh = init_device_mesh(device, (n, shards), mesh_dim_names=("replicas", "shards"))`, apply
    `fully_shard(..., mesh=mesh["shards"])` first, then call this on every rank with `mesh["replicas"]`.
    Parameters and buffers of all replicas become those of replica 0. From then on gradients after
    `backward()` are the update. To accumulate them over several passes, call
    `model.set_requires_gradient_sync(False)` before all but the last.

    Args:
        model: with `fully_shard` applied to it, on the mesh of shards alone: on a mesh of replicas and
            shards FSDP takes the average over replicas before anybody can see a row.
        replicas: the ranks that hold the same shard as this one, a replica each.
        aggregator: as `Reduction` takes it, and all that follow; of ranks read replicas.
        f: so many replicas may be faulty.
        whole: the ranks of all shards of all replicas; by default all ranks.
        seed: of mixings that draw at random.
        on_step: called with the record of each step on every rank; places in it are those of replicas.
        log: a file for the records, which rank 0 writes.
        momentum: beta of the momentum of each replica, as of `Reduction`.
        per_bucket: decide about each module with `fully_shard` by itself, small ones together.
        suspect_after: steps in a row without influence after which a replica is a suspect.
        on_suspect: called with a suspect; its host is that of the rank that holds the same shard.
        on_error: as of `robust`.
        weights: what the gradient of each replica weighs, in the order of replicas; None for all the same.
        audit: 0: there is none, as ranks with other shards would have to be taken at their word.
        leave_out_opposed: leave out replicas that are opposed to the others, as of `Reduction`.

    Returns:
        The state; its `state_dict` belongs to this rank, as the reference has the shards that are here.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: the model is not sharded in that way, the rule has no guarantee for so many replicas, or
            an audit is asked for.
    """
    if audit:
        raise ValueError(
            f"audit: should be 0 with fully sharded models. Found {audit!r}: a rank sees the columns of "
            "its own shard alone, and cannot compute those of other shards again."
        )
    group = _group_of(replicas)
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not isinstance(model, FSDPModule):
        raise ValueError(
            f"model: should have fully_shard applied to it. Found {type(model).__name__}. Write "
            'fully_shard(model, mesh=mesh["shards"]) before.'
        )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model: should have parameters that are trained. Found none.")
    for name, parameter in named:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        if mesh is None or mesh.ndim != 1:
            found = "a plain tensor" if mesh is None else f"a mesh of {mesh.ndim} dimensions"
            raise ValueError(
                f"parameters.{name}: should be sharded on a mesh of one dimension, that of shards. Found "
                f"{found}: replicas are left to robust_fsdp."
            )
        _check_parameter(name, parameter, mesh, group)
    reduction = Reduction(
        aggregator,
        f,
        seed=seed,
        on_step=on_step,
        log=log,
        momentum=momentum,
        per_bucket=per_bucket,
        suspect_after=suspect_after,
        on_suspect=on_suspect,
        on_error=on_error,
        weights=weights,
        leave_out_opposed=leave_out_opposed,
    )
    parts = _parts_of(model)
    names = {id(parameter): name for name, parameter in named}
    stand_ins = [
        (names[id(parameter)], each)
        for part in parts
        for parameter, each in zip(part.parameters, part.stand_ins, strict=True)
    ]
    everyone = whole or dist.group.WORLD
    assert everyone is not None
    reduction.attach(stand_ins, local(named[0][1]).device, group, whole=everyone)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(local(tensor), group=group, group_src=0)
    hooks = _Replicas(parts, reduction, everyone)
    for module in modules:
        try:
            module.set_all_reduce_hook(hooks.hook)
        except ValueError as error:
            raise ValueError(f"model: should have one group of parameters a module. {error}") from error
    return reduction
