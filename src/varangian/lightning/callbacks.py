"""Callbacks of Lightning: the Trainer as a worker of a server, and a robust rule in its DDP."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from varangian.aggregators import Aggregator
from varangian.client.outcome import Outcome
from varangian.loops.steps import Connection, RemoteOptimizer, RemoteSteps
from varangian.torch import Reduction, robust


class Worker(Callback):
    """The Trainer as a worker of a server: `Trainer(callbacks=[Worker("server:50051", certs="w00")])`.

    Before the first batch of a step the parameters of the server are pulled, and in the place of the step
    the gradients are pushed: the mean over `accumulate_grad_batches`, clipped, and unscaled where precision
    is mixed. A step that a gradient scaler skips is declined. Optimizer and schedule are those of the
    server; those of `configure_optimizers` are not used. Training ends when the run of the server does,
    whatever `min_epochs` and `min_steps` say.

    Args:
        server: `host:port`.
        module: the path of the part of the LightningModule that is the model of the server, as "net"; all
            of it by default.
        certs: as all that follow, as for `varangian.connect`.
        name: of the worker.
        token: proves the name where there is no TLS.
        momentum: worker momentum.
        patience: seconds to wait for a server that cannot be reached.
        state: the folder in which worker momentum is kept.
        insecure: show a token to another machine without TLS.
        on_outcome: called with what came of each push.
        log: whether `varangian/accepted` and `varangian/weight` are logged.
    """

    def __init__(
        self,
        server: str,
        module: str = "",
        *,
        certs: str | os.PathLike[str] | None = None,
        name: str | None = None,
        token: str | None = None,
        momentum: float | None = None,
        patience: float | None = None,
        state: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        on_outcome: Callable[[Outcome], None] | None = None,
        log: bool = True,
    ) -> None:
        super().__init__()
        self._connection = Connection(server, certs, name, token, momentum, patience, state, insecure)
        self._module = module
        self._log = log
        self._steps = RemoteSteps(on_outcome)
        self._before_step = False
        self._least: tuple[Any, Any] | None = None
        """The `min_epochs` and `min_steps` of the Trainer, while they do not count."""

    @property
    def outcome(self) -> Outcome | None:
        """What came of the last push."""
        return self._steps.outcome

    @property
    def reason(self) -> str:
        """Why the run of the server is over; empty while it is not."""
        return self._steps.reason

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Connect, and put an optimizer that pushes in the place of the one that is there.

        Raises:
            ValueError: the Trainer cannot be a worker.
            ClientError: as `varangian.connect`.
        """
        if trainer.world_size > 1:
            raise ValueError(
                f"trainer: should have one process, which is one worker. Found {trainer.world_size}: start "
                "a Trainer with devices=1 for each worker."
            )
        if len(trainer.optimizers) > 1:
            raise ValueError(
                "configure_optimizers: should return one optimizer or none. Found "
                f"{len(trainer.optimizers)}."
            )
        model = self._model(pl_module)
        self._steps.connect(self._connection, model)
        if trainer.lr_scheduler_configs:
            rank_zero_warn(
                "The learning rate is that of the server: schedulers of this module are not used."
            )
            trainer.strategy.lr_scheduler_configs = []
        trainer.strategy.optimizers = [RemoteOptimizer(model, self._steps)]

    def _model(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise ValueError(
                f"module: should be the path of a part of {type(pl_module).__name__}. Found "
                f"{self._module!r}."
            ) from error

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._steps.before():
            trainer.should_stop = True
            # Until those many a Trainer does not listen, and every step that it takes now comes to nothing.
            loop = trainer.fit_loop
            if self._least is None:
                self._least = loop.min_epochs, loop.epoch_loop.min_steps
            loop.min_epochs, loop.epoch_loop.min_steps = 0, None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self._before_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._before_step:  # its gradients are added to those of the next one
            return
        self._before_step = False
        self._steps.skipped()
        if self._log and (outcome := self._steps.outcome) is not None:
            pl_module.log("varangian/accepted", float(outcome.accepted))
            if outcome.weight is not None:
                pl_module.log("varangian/weight", outcome.weight)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps.close()
        if self._least is not None:
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = self._least
            self._least = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._steps.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._steps.close()


class Robust(Callback):
    """A robust rule in the place of the average of gradients of the strategy `ddp`, without a server.

    `Trainer(strategy="ddp", callbacks=[Robust("nnm+trimmed_mean", f=1)])` does what
    `varangian.torch.robust` does. `reduction` is its state, which is kept in checkpoints of the Trainer,
    but for momentum: that of each rank begins anew when training is resumed.

    Args:
        aggregator: as for `varangian.torch.robust`.
        f: how many ranks may be faulty.
        options: the other arguments of `varangian.torch.robust`: `seed`, `on_step`, `log`, `momentum`,
            `per_bucket`, `audit`, `suspect_after`, `on_suspect`, `on_error`, `weights`
            and `leave_out_opposed`.

    Raises:
        TypeError: there is no such option.
    """

    def __init__(
        self,
        aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
        f: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        inspect.signature(robust).bind(None, aggregator, f, **options)
        self._aggregator, self._f, self._options = aggregator, f, options
        self._state: dict[str, Any] | None = None
        self.reduction: Reduction | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rule into the model that the strategy has wrapped.

        Raises:
            ValueError: the strategy is another one, or as `varangian.torch.robust`.
        """
        model = trainer.strategy.model
        if not isinstance(model, DistributedDataParallel):
            raise ValueError(
                "trainer: should have the strategy ddp, whose gradients are averaged over processes. Found "
                f"{type(trainer.strategy).__name__}."
            )
        self.reduction = robust(model, self._aggregator, self._f, **self._options)
        if self._state is not None:
            self.reduction.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """The state of the reduction, without momentum: each rank has another, and one of them is saved."""
        if self.reduction is None:
            return {}
        return {"reduction": {**self.reduction.state_dict(), "rank": None, "momentum": {}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("reduction")
