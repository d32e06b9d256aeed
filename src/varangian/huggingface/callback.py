"""A `transformers.Trainer` as a worker of a server: a callback, and the optimizer that goes with it."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from varangian.client.outcome import Outcome
from varangian.loops.steps import Connection, RemoteOptimizer, RemoteSteps


class Worker(TrainerCallback):
    """The Trainer as a worker of a server.

        with Worker("server:50051", model, certs="w00") as worker:
            trainer = Trainer(model, args, callbacks=[worker], optimizers=worker.optimizers, ...)
            trainer.train()

    Before the first batch of a step the parameters of the server are pulled, and in the place of the step
    the gradients are pushed: the mean over `gradient_accumulation_steps`, clipped, and unscaled where
    precision is mixed. A step that a gradient scaler skips is declined. Optimizer and schedule are those of
    the server. Training ends when the run of the server does.

    It connects when training begins; the end of `with`, or of training, closes the connection.

    Args:
        server: `host:port`.
        model: that of the Trainer, with the parameters that train.
        certs: as all that follow, as for `varangian.connect`.
        name: of the worker.
        token: proves the name where there is no TLS.
        momentum: worker momentum.
        patience: seconds to wait for a server that cannot be reached.
        state: the folder in which worker momentum is kept.
        insecure: show a token to another machine without TLS.
        on_outcome: called with what came of each push.
    """

    def __init__(
        self,
        server: str,
        model: nn.Module,
        *,
        certs: str | os.PathLike[str] | None = None,
        name: str | None = None,
        token: str | None = None,
        momentum: float | None = None,
        patience: float | None = None,
        state: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._connection = Connection(server, certs, name, token, momentum, patience, state, insecure)
        self._model = model
        self._steps = RemoteSteps(on_outcome)
        self._optimizer: RemoteOptimizer | None = None

    @property
    def optimizers(self) -> tuple[RemoteOptimizer, LambdaLR]:
        """For the argument `optimizers` of the Trainer: an optimizer that pushes, and no schedule."""
        self._optimizer = RemoteOptimizer(self._model, self._steps)
        return self._optimizer, LambdaLR(self._optimizer, lambda step: 1.0)

    @property
    def outcome(self) -> Outcome | None:
        """What came of the last push."""
        return self._steps.outcome

    @property
    def reason(self) -> str:
        """Why the run of the server is over; empty while it is not."""
        return self._steps.reason

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Connect.

        Raises:
            ValueError: the Trainer has another optimizer, or several processes.
            ClientError: as `varangian.connect`.
        """
        if args.world_size > 1:
            raise ValueError(
                f"args: should be for one process, which is one worker. Found {args.world_size} processes: "
                "start a Trainer for each worker."
            )
        given = kwargs.get("optimizer")
        if self._optimizer is None or getattr(given, "optimizer", given) is not self._optimizer:
            raise ValueError(
                "optimizers: should be those of the worker. Found others: write "
                "Trainer(..., callbacks=[worker], optimizers=worker.optimizers)."
            )
        self._steps.connect(self._connection, self._model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._steps.before():
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._steps.skipped()
        if self._steps.over:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; again changes nothing."""
        self._steps.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
