"""Steps of a training loop as rounds of a server: a pull before the first batch, and a push as the step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varangian.client.connect import connect
from varangian.client.outcome import Outcome
from varangian.client.worker import Worker
from varangian.worker.transport.client import ClientError

SKIPPED = "The loop took no step, as where a gradient scaler finds numbers that are not finite."


@dataclass(frozen=True)
class Connection:
    """How a worker is connected, as the arguments of `varangian.connect` say."""

    server: str
    certs: str | os.PathLike[str] | None = None
    name: str | None = None
    token: str | None = None
    momentum: float | None = None
    patience: float | None = None
    state: str | os.PathLike[str] | None = None
    insecure: bool = False

    def open(self, model: nn.Module) -> Worker:
        """Connect.

        Raises:
            ClientError: as `varangian.connect`.
        """
        return connect(
            self.server,
            model,
            certs=self.certs,
            name=self.name,
            token=self.token,
            momentum=self.momentum,
            patience=self.patience,
            state=self.state,
            insecure=self.insecure,
        )


class RemoteSteps:
    """The rounds of a loop that has hooks before a batch, in the place of a step, and after a batch."""

    def __init__(self, on_outcome: Callable[[Outcome], None] | None = None) -> None:
        self.worker: Worker | None = None
        self.outcome: Outcome | None = None
        """What came of the last push."""
        self.over = False
        """Whether the run of the server is over."""
        self.reason = ""
        """Why it is, also when the connection is closed; empty while it is not."""
        self._on_outcome = on_outcome
        self._open = False

    def connect(self, connection: Connection, model: nn.Module) -> None:
        """Connect, unless it is.

        Raises:
            ClientError: as `varangian.connect`.
        """
        if self.worker is None:
            self.worker = connection.open(model)
            self.over = self._open = False
            self.reason = ""

    def before(self) -> bool:
        """Pull for a new step, and not within one, of several batches. False when the run is over."""
        if self.worker is not None and not self._open and not self.over:
            self._open = self.worker.pull()
            self.over, self.reason = not self._open, self.worker.reason
        return not self.over

    def step(self) -> None:
        """Push the gradients of the model; nothing when the run is over."""
        if self.worker is None or self.over:
            return
        if not self._open:
            raise ClientError(
                "A step should follow a batch. Found one for which no parameters were pulled."
            )
        self._open = False
        self.outcome = self.worker.push()
        if self._on_outcome is not None:
            self._on_outcome(self.outcome)

    def skipped(self) -> None:
        """Decline the round of a step that the loop did not take."""
        if self.worker is not None and self._open:
            self._open = False
            self.worker.decline(SKIPPED)

    def close(self) -> None:
        """End the connection; again changes nothing."""
        worker, self.worker = self.worker, None
        self._open = False
        if worker is not None:
            worker.close()


class RemoteOptimizer(torch.optim.Optimizer):
    """An optimizer whose step pushes the gradients: the server takes the step, with its own optimizer.

    Its learning rate has no meaning, and is there for what asks every optimizer for one.
    """

    def __init__(self, model: nn.Module, steps: RemoteSteps) -> None:
        self._steps = steps
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": 0.0})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Compute with the closure, if any, and push."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._steps.step()
        return loss
