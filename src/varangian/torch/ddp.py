"""`DistributedDataParallel` with a robust rule in the place of its average."""

# No `from __future__ import annotations`: DDP compares the annotations of a hook with the types themselves.

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from varangian.aggregators import Aggregator
from varangian.torch.reduction import Reduction
from varangian.torch.steps import Step, SuspectRank


def robust_hook(
    state: Reduction,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[torch.Tensor]:
    """The communication hook, to register by hand: `register_comm_hook(Reduction(...), robust_hook)`."""
    return state.take(bucket)


def robust(
    model: DistributedDataParallel,
    aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
    f: int = 1,
    *,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    log: str | Path | None = None,
    momentum: float = 0.0,
    per_bucket: bool = False,
    audit: float = 0.0,
    suspect_after: int = 10,
    on_suspect: Callable[[SuspectRank], None] | None = None,
    on_error: Literal["raise", "nan"] = "raise",
    weights: Sequence[float] | None = None,
    leave_out_opposed: bool = False,
) -> Reduction:
    """Replace the average of gradients by a robust rule, on every rank, before the first backward pass.

    Args:
        model: wrapped by `DistributedDataParallel`, without another communication hook.
        aggregator: as `Reduction` takes it, and all that follow.
        f: so many ranks may be faulty.
        seed: of mixings that draw at random.
        on_step: called with the record of each step.
        log: a file for the records, which rank 0 writes.
        momentum: beta of the momentum of each rank, as of `Reduction`.
        per_bucket: decide about each bucket by itself, which overlaps with the backward pass.
        audit: the share of the columns of each rank that all ranks compute again, as of `Reduction`.
        suspect_after: steps in a row without influence after which a rank is a suspect.
        on_suspect: called with a suspect; by default there is a warning.
        on_error: "raise", or "nan" for gradients that are NaN, where a step has no update.
        weights: what the gradient of each rank weighs; None for all the same.
        leave_out_opposed: leave out ranks that are opposed to the others, as of `Reduction`.

    Returns:
        The state, with the last record (`last`), `state_dict` and `load_state_dict`.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: the rule has no guarantee for so many ranks, ranks were told different things, or the
            model has a communication hook already.
    """
    _check_wrapped(model)
    reduction = Reduction(
        aggregator,
        f,
        seed=seed,
        on_step=on_step,
        log=log,
        momentum=momentum,
        per_bucket=per_bucket,
        audit=audit,
        suspect_after=suspect_after,
        on_suspect=on_suspect,
        on_error=on_error,
        weights=weights,
        leave_out_opposed=leave_out_opposed,
    )
    parameters = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
    reduction.attach(parameters, parameters[0][1].device, model.process_group)
    try:
        model.register_comm_hook(reduction, robust_hook)
    except RuntimeError as error:
        raise ValueError(
            f"model: should have no communication hook, and be before its first backward pass. {error}"
        ) from error
    return reduction


def _check_wrapped(model: object) -> None:
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"model: should be wrapped in DistributedDataParallel. Found {type(model).__name__}. "
            "Write robust(DistributedDataParallel(model), ...)."
        )
