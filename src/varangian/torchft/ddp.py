"""torchft's DistributedDataParallel with a robust rule over the replicas of the quorum."""

# No `from __future__ import annotations`: DDP compares the annotations of a hook with the types themselves.

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchft.ddp import DistributedDataParallel as Managed  # pyright: ignore[reportMissingImports]
from torchft.manager import Manager  # pyright: ignore[reportMissingImports]

from varangian.aggregators import AggregationError, Aggregator
from varangian.torch import arguments
from varangian.torch.reduction import Reduction
from varangian.torch.steps import Step, SuspectRank

log = logging.getLogger(__name__)


class DistributedDataParallel(Managed):  # pyright: ignore[reportUntypedBaseClass]
    """As `torchft.ddp.DistributedDataParallel`; gradients of replicas are reduced by a robust rule.

    The rows are the gradients of the replicas in the quorum. A replica that is healing has no gradient: it
    counts as one that is not finite, so it spends one of the f in this step. Where the rule has no
    guarantee for so many replicas, or more than f gradients are not finite, the step is reported to the
    manager and discarded by `should_commit`, as after a lost connection.

    Args:
        manager: of this replica, over a process group of torchft for gloo or NCCL in this process.
        module: the model.
        aggregator: as `varangian.torch.Reduction` takes it.
        f: so many replicas may be faulty.
        seed, on_step, log, audit, suspect_after, on_suspect: as of `varangian.torch.robust`; ranks are
            places in the quorum, which may be others after it has changed. What was seen of a replica goes
            with it by its `replica_id`. A step in which an audit finds a replica that computes wrongly is
            discarded.
        weight: what the gradient of this replica weighs, as samples of its batch; None on all for the same.
            The rule takes any f of them for faulty, also the heaviest. Where those would have half of the
            weight, steps are discarded, and the log names the heaviest, until it is gone or says less.
        weights: None: places in the quorum change, so each replica says its own `weight`.
        ddp: arguments of DistributedDataParallel.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: weights are given, or another argument is wrong.
    """

    def __init__(
        self,
        manager: Manager,
        module: nn.Module,
        aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
        f: int = 1,
        *,
        seed: int = 0,
        on_step: Callable[[Step], None] | None = None,
        log: str | Path | None = None,
        audit: float = 0.0,
        weight: float | None = None,
        weights: Sequence[float] | None = None,
        suspect_after: int = 10,
        on_suspect: Callable[[SuspectRank], None] | None = None,
        **ddp: Any,
    ) -> None:
        if weights is not None:
            raise ValueError(
                f"weights: should be left out with torchft. Found {weights!r}: which replica has which "
                "place in the quorum changes. Write weight=, what this replica weighs, on each."
            )
        arguments.check({"weight": weight})
        reduction = Reduction(
            aggregator,
            f,
            seed=seed,
            on_step=on_step,
            log=log,
            audit=audit,
            suspect_after=suspect_after,
            on_suspect=on_suspect,
            on_error="nan",
        )
        # Before the object is initialised as a module, which registers the hook.
        object.__setattr__(self, "reduction", reduction)
        object.__setattr__(self, "_met", None)
        object.__setattr__(self, "_weight", weight)
        super().__init__(manager, module, **ddp)

    reduction: Reduction
    """The state, with the last record."""
    _weight: float | None
    """Of the gradient of this replica."""
    _met: int | None
    """The quorum whose replicas have met."""

    def _comm_hook(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state: Manager,
        bucket: dist.GradBucket,  # type: ignore[name-defined]  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[torch.Tensor]:
        if state.errored():
            return _done(bucket.buffer())
        try:
            if bucket.index() == 0:
                state.wait_quorum()
                self._meet(state)
            if not state.is_participating():
                bucket.buffer().fill_(torch.nan)
            future = self.reduction.take(bucket)
        except Exception as error:  # a replica that is lost, or a rule without a guarantee for those left
            log.warning("the step is discarded: %s", error)
            state.report_error(error)
            self.reduction.abandon()
            return _done(bucket.buffer())
        last = self.reduction.last
        if bucket.is_last() and last is not None and last.error is not None:
            state.report_error(AggregationError(last.error))
        return future

    def _meet(self, manager: Manager) -> None:
        """Introduce the replicas to each other after the quorum has changed."""
        quorum = manager._quorum_id  # pyright: ignore[reportPrivateUsage]
        if quorum == self._met:
            return
        managed: Any = manager._pg  # pyright: ignore[reportPrivateUsage]
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        self._met = None
        me: str | None = manager._replica_id  # pyright: ignore[reportPrivateUsage]
        self.reduction.attach(named, named[0][1].device, managed.parent, name=me or "", weight=self._weight)
        self._met = quorum


def _done(tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(tensor)
    return future
