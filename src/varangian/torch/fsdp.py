"""Fully sharded models (FSDP2) with a robust rule over their replicas in the place of the all-reduce.

A replica is a row: its ranks hold the shards of one model, with `fully_shard` on the mesh of shards alone.
When the backward pass has written the sharded gradients, the ranks that hold the same shard exchange
columns of it, and one decision is made from the sum over all shards.

n  replicas     d  numbers of the shards of one rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from varangian.torch.reduction import Reduction, after_gradients
from varangian.torch.steps import Step, SuspectRank

AT_ONCE = 1 << 25
"""Bytes of gradients that are exchanged at once, or one tensor if it is larger."""


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


class _Replicas:
    """Reduces the gradients of a sharded model over its replicas, once after each backward pass."""

    def __init__(self, parameters: Sequence[nn.Parameter], reduction: Reduction) -> None:
        self._parameters = parameters
        self._reduction = reduction
        self._asked = False

    def hook(self, reduced: Tensor) -> None:
        """For `set_all_reduce_hook`: gradients of a module are about to be written."""
        del reduced
        if not self._asked:
            self._asked = True
            # The last callback of FSDP itself may still write gradients.
            after_gradients(self.reduce)

    def reduce(self) -> None:
        """Exchange the gradients, and write the update in their place."""
        self._asked = False
        taken = [(bucket.of, self._reduction.take(bucket)) for bucket in self._buckets()]
        for parameters, future in taken:
            sizes = [local(parameter).numel() for parameter in parameters]
            for parameter, part in zip(parameters, future.value().split(sizes), strict=True):
                if parameter.grad is not None:
                    local(parameter.grad).copy_(part.view_as(local(parameter)))
                elif bool(part.any()):  # other replicas have used it
                    parameter.grad = torch.zeros_like(parameter)
                    local(parameter.grad).copy_(part.view_as(local(parameter)))

    def _buckets(self) -> Iterator[_Shards]:
        """All gradients here, a few of one type at a time, in an order that is the same in each replica."""
        groups: list[list[nn.Parameter]] = []
        left = 0
        for parameter in self._parameters:
            size = local(parameter).numel() * parameter.element_size()
            if not groups or parameter.dtype != groups[-1][0].dtype or size > left:
                groups.append([])
                left = AT_ONCE
            groups[-1].append(parameter)
            left -= size
        for number, parameters in enumerate(groups):
            flat = torch.cat([_gradient(parameter) for parameter in parameters])
            yield _Shards(number, flat, [*parameters], number == len(groups) - 1)


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
    group = replicas if isinstance(replicas, dist.ProcessGroup) else replicas.get_group()
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not isinstance(model, FSDPModule):
        raise ValueError(
            f"model: should have fully_shard applied to it. Found {type(model).__name__}. Write "
            'fully_shard(model, mesh=mesh["shards"]) before.'
        )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in named:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        if mesh is None or mesh.ndim != 1:
            found = "a plain tensor" if mesh is None else f"a mesh of {mesh.ndim} dimensions"
            raise ValueError(
                f"parameters.{name}: should be sharded on a mesh of one dimension, that of shards. Found "
                f"{found}: replicas are left to robust_fsdp."
            )
    reduction = Reduction(
        aggregator,
        f,
        seed=seed,
        on_step=on_step,
        log=log,
        momentum=momentum,
        suspect_after=suspect_after,
        on_suspect=on_suspect,
        on_error=on_error,
        weights=weights,
        leave_out_opposed=leave_out_opposed,
    )
    shards = [(name, local(parameter)) for name, parameter in named]
    everyone = whole or dist.group.WORLD
    assert everyone is not None
    reduction.attach(shards, shards[0][1].device, group, whole=everyone)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(local(tensor), group=group, group_src=0)
    parameters = [parameter for _, parameter in named]
    reduction.name({id(parameter): name for name, parameter in named})
    hooks = _Replicas(parameters, reduction)
    for module in modules:
        try:
            module.set_all_reduce_hook(hooks.hook)
        except ValueError as error:
            raise ValueError(f"model: should have one group of parameters a module. {error}") from error
    return reduction
