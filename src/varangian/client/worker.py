"""Worker: a loop's connection to a server, as `varangian.connect` opens it."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from varangian.client.exchange import END, Exchange, wait
from varangian.client.outcome import Outcome
from varangian.protos.contract import Terms
from varangian.protos.layout import Layout

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler


class WorkerFacts:
    """What a worker knows of its run, without a call."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def exchange(self) -> Exchange:
        """What other parts of this package work with."""
        return self._exchange

    @property
    def name(self) -> str:
        """The name of the worker."""
        return self._exchange.name

    @property
    def run(self) -> str:
        """The name of the run."""
        return self._exchange.run

    @property
    def round(self) -> int:
        """The round whose parameters were pulled last; -1 before the first. A server may go back."""
        return self._exchange.round

    @property
    def reason(self) -> str:
        """Why the run is over; empty while it is not known to be."""
        return self._exchange.reason

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters, in the order of the vector."""
        return self._exchange.layout

    @property
    def terms(self) -> Terms:
        """What the server says of the run: its starts and checkpoints, worker momentum and deadline."""
        return self._exchange.terms

    @property
    def momentum(self) -> float:
        """The worker momentum in use; 0 sends plain gradients."""
        return self._exchange.memory.beta

    @property
    def parameters(self) -> Tensor:
        """What was pulled, (d,) float32 on the CPU. Read it only; the next pull writes over it.

        Raises:
            ClientError: nothing was pulled yet.
        """
        return self._exchange.parameters

    def unscale_(self, scaler: GradScaler) -> None:
        """Unscale the gradients of the model in place, as to clip them before `push(scaler=scaler)`.

        As `scaler.unscale_(optimizer)`, for a loop without an optimizer.

        Raises:
            ClientError: the scaler was not used for the loss, or torch cannot unscale gradients of this
            type.
        """
        self._exchange.unscale(scaler)


class Worker(WorkerFacts):
    """One worker of a run, in a training loop of the user's own. Not to be used from two threads at once.

        with varangian.connect("server:50051", model, certs="w00") as worker:
            for batch in loader:
                if not worker.pull(): break
                loss_of(model, batch).backward()
                worker.push()

    While the loop computes, a thread tells the server that this worker is alive. `close` or the end of
    `with` ends the connection; then the server waits for this worker no longer.
    """

    def pull(self, *, zero_grad: bool = True) -> bool:
        """Wait for the next round and copy its parameters into the model; False when the run is over.

        The parameters keep their type and device, and the gradients of the model are cleared. A round that
        was pulled before and neither pushed for nor declined is declined now. After a restart of the server
        it may be an earlier round again, with the parameters of that round.

        Args:
            zero_grad: False leaves the gradients of the model as they are.

        Raises:
            ClientError: the server cannot be reached any more, or does not take this worker.
        """
        return self._exchange.end_pull(wait(self._exchange.begin_pull()), zero_grad)

    def push(
        self, vector: Tensor | None = None, *, scaler: GradScaler | None = None, divide: float = 1
    ) -> Outcome:
        """Send the gradients of the model for the round that was pulled, and wait for the answer.

        They are the sum over all `backward()` since the pull, with zeros for parameters without a gradient.
        With worker momentum m, what is sent is m <- beta m + (1 - beta) g. Gradients that are not
        finite are never sent: the round is declined.

        Args:
            vector: (d,) to send in their place, of a real floating-point type, on any device.
            scaler: a `torch.amp.GradScaler` that has scaled the loss. What is sent is unscaled, and a round
                whose gradients overflowed is declined; call `scaler.update()` afterwards, as after
                `scaler.step`.
            divide: a number to divide by, as the number of batches whose gradients were added up.

        Raises:
            ClientError: there is no round to push for, no gradient, a vector that cannot be sent, or the
                server cannot be reached any more or does not take this worker.
        """
        return wait(self._exchange.begin_push(vector, scaler, divide, copy=False))

    def push_async(
        self, vector: Tensor | None = None, *, scaler: GradScaler | None = None, divide: float = 1
    ) -> Future[Outcome]:
        """As `push`, without waiting: the vector is copied now and travels while the loop goes on.

        Its future has the outcome, or the error. The next `pull` waits until it has been sent.
        """
        return self._exchange.begin_push(vector, scaler, divide, copy=True)

    def decline(self, reason: str) -> None:
        """Send nothing in the round that was pulled: the server need not wait for it.

        Args:
            reason: one sentence for the record of the round.

        Raises:
            ClientError: there is no round to decline, or the server cannot be reached any more.
        """
        wait(self._exchange.begin_decline(reason))

    def close(self) -> None:
        """End the connection at once; a push that is on its way is given up. Again changes nothing."""
        closing = self._exchange.begin_close()
        if closing is not None:
            with suppress(TimeoutError):
                closing.result(END)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for pushes that are on their way unless there is an error, and close."""
        try:
            if error is None:
                for future in self._exchange.drain():
                    with suppress(Exception):  # which the future has for its owner
                        wait(future)
        finally:
            self.close()
