"""Outer steps of DiLoCo: a loop takes H steps with an optimizer of its own, and pushes where they led.

"DiLoCo: Distributed Low-Communication Training of Language Models" (Douillard et al., 2023). The vector is
the pseudo-gradient, the parameters at the start less those after H steps, and the server's optimizer takes
the outer step. With a delay, as in "Streaming DiLoCo with overlapping communication" (Douillard et al.,
2025), inner steps go on while the vector travels.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from numbers import Real
from types import TracebackType

from torch import Tensor, nn

from varangian.client.exchange import Exchange, wait
from varangian.client.outcome import Outcome
from varangian.client.session import Given
from varangian.client.training.model import ModelVector, unwrapped
from varangian.client.worker import Worker
from varangian.protos.layout import fragments_of
from varangian.protos.payloads.encoding import put, take
from varangian.worker.training.flat import DivergedError, check_finite
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.results import Finished

DIVERGED = (
    "The parameters after {steps} inner steps are not finite, or too far from those at the start to be "
    "sent: the model has diverged. The state of the inner optimizer may be bad as well."
)


@dataclass(frozen=True)
class Underway:
    """A pseudo-gradient on its way, and the pull after it."""

    pushing: Future[Outcome]
    pulling: Future[Given | Finished]


def outer(
    model: nn.Module,
    worker: Worker,
    *,
    every: int,
    delay: int = 0,
    alpha: float = 0.5,
    momentum: bool = False,
) -> Outer:
    """Outer steps for a loop with an optimizer of its own, in the place of `worker.pull` and `worker.push`.

        inner = torch.optim.AdamW(model.parameters(), 1e-3)
        with varangian.outer(model, worker, every=100) as outer:
            for batch in loader:
                if not outer.running: break
                inner.zero_grad()
                loss_of(model, batch).backward()
                inner.step()
                outer.step()

    Args:
        model: the module that the worker was connected with.
        worker: as `connect` returns it; its `pull` and `push` are not called meanwhile.
        every: H, inner steps for each outer one. Where the run has P fragments (`server.fragments`), each
            of them is pushed every H steps, and one of them every H / P.
        delay: inner steps that are taken while the vector travels and the round closes, fewer than `every`.
        alpha: with a delay, the part of the loop's own parameters in those with which it goes on; the rest
            is the server's. 0 drops the steps that were taken meanwhile. Without a delay it has no effect.
        momentum: whether worker momentum, as `worker.momentum` has it, is over pseudo-gradients. By default
            there is none: the outer optimizer has its own.

    Raises:
        ClientError: an argument cannot be used.
    """
    if not isinstance(worker, Worker):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = type(worker).__name__
        raise ClientError(f"`worker` should be what varangian.connect() returns. Found {found}.")
    exchange = worker.exchange
    if not isinstance(every, int) or every < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ClientError(f"`every` should be a number of inner steps, at least 1. Found {every!r}.")
    if not (isinstance(delay, int) and 0 <= delay < every):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ClientError(
            f"`delay` should be a number of inner steps from 0 to below `every`, {every}. Found {delay!r}."
        )
    if not (isinstance(alpha, Real) and 0 <= alpha < 1):
        raise ClientError(f"`alpha` should be a number from 0 to below 1. Found {alpha!r}.")
    if not isinstance(momentum, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ClientError(f"`momentum` should be True or False. Found {momentum!r}.")
    count = worker.terms.fragments
    if every % count:
        rule = f"`every` should be a multiple of the {count} fragments of the run"
        raise ClientError(f"{rule}. Found {every}.")
    if delay >= every // count:
        rule = f"`delay` should be less than the {every // count} steps from one fragment to the next"
        raise ClientError(f"{rule}. Found {delay}.")
    if momentum and count > 1:
        raise ClientError("`momentum` cannot be over pseudo-gradients of several fragments.")
    own = ModelVector(unwrapped(model)).parameters
    if [id(parameter) for parameter in own] != [id(parameter) for parameter in exchange.model.parameters]:
        raise ClientError("`model` should be the one that the worker was connected with. Found another.")
    return Outer(exchange, every // count, delay, alpha if delay else 0.0, momentum)


class Outer:
    """Outer steps of one worker, as `varangian.outer` makes them; a context manager.

    On entry it pulls the parameters of a round. Buffers of the model and the inner optimizer stay the
    loop's own; only parameters are replaced.
    """

    def __init__(self, exchange: Exchange, every: int, delay: int, alpha: float, momentum: bool) -> None:
        self._exchange, self._every, self._delay = exchange, every, delay
        self._alpha, self._momentum = alpha, momentum
        self._start: Tensor | None = None
        """The parameters that the model got from the server last, (d,) float32, as its types round them."""
        self._given: Given | None = None
        """Of which round they are."""
        self._steps = 0
        self._underway: Underway | None = None
        self._entered = False

    @property
    def running(self) -> bool:
        """Whether the run goes on; False once it is over, and the model is then where its steps led."""
        return self._start is not None

    @property
    def steps(self) -> int:
        """Inner steps since the last outer one."""
        return self._steps

    def step(self) -> Outcome | None:
        """Count an inner step; the H-th pushes, waits for the next round and takes up its parameters.

        With a delay the H-th begins to, and the `delay`-th after it waits.

        Returns:
            The outcome of the push once it is known, None for the other steps and when the run is over. A
            vector that does not count, as one that comes too late, is lost: the loop goes on from the
            server's parameters.

        Raises:
            ClientError: the server cannot be reached any more, or does not take this worker; or this is not
                inside of `with`.
        """
        self._check_entered("step()")
        if not self.running:
            return None
        self._steps += 1
        outcome = None
        if self._underway is not None and self._steps >= self._delay:
            outcome = self._take_up(self._underway)
        if self.running and self._steps >= self._every:
            underway = self._begin()
            if not self._delay:
                outcome = self._take_up(underway)
        return outcome

    def sync(self) -> Outcome | None:
        """Take the outer step now, after however many inner ones, and wait for it; None if there were none.

        Raises:
            ClientError: as `step`.
        """
        self._check_entered("sync()")
        outcome = None if self._underway is None else self._take_up(self._underway)
        return self._take_up(self._begin()) if self.running and self._steps else outcome

    def _check_entered(self, what: str) -> None:
        """Without the pull on entry there would be steps that nobody hears of."""
        if not self._entered:
            raise ClientError(
                f"{what} belongs inside of `with varangian.outer(...) as outer:`, which first pulls the "
                "parameters of a round."
            )

    def _begin(self) -> Underway:
        """Begin to push, and to pull when that is done."""
        assert self._start is not None
        difference = (self._start - self._exchange.model.flat()).cpu()
        steps, self._steps = self._steps, 0
        try:
            check_finite(difference)
        except DivergedError:
            pushing = self._exchange.begin_decline(DIVERGED.format(steps=steps))
        else:
            plain = not self._momentum
            pushing = self._exchange.begin_push(difference, None, 1, copy=False, plain=plain)
        self._underway = Underway(pushing, self._exchange.begin_pull())
        return self._underway

    def _take_up(self, underway: Underway) -> Outcome:
        """Wait for the next round, and go on from its parameters."""
        self._underway = None
        try:
            outcome, got = wait(underway.pushing), wait(underway.pulling)
        except BaseException:
            underway.pulling.cancel()
            raise
        self._pulled(got)
        return outcome

    def _pulled(self, got: Given | Finished) -> None:
        """Go on from the parameters of a round, if the run does."""
        exchange, before = self._exchange, self._given
        kept = self._alpha > 0 or exchange.terms.fragments > 1
        own = exchange.model.flat() if kept and self._start is not None else None
        going_on = exchange.end_pull(got, zero_grad=False)
        self._start = exchange.model.flat() if going_on else None
        self._given = got if isinstance(got, Given) else None
        if own is not None and self._start is not None and self._given is not None:
            exchange.model.load(self._mixed(own, self._start, before, self._given))

    def _mixed(self, own: Tensor, start: Tensor, before: Given | None, given: Given) -> Tensor:
        """The parameters with which the loop goes on, from its own and those of the server."""
        new = start.lerp(own, self._alpha)
        count = given.terms.fragments
        if count == 1 or before is None or before.start != given.start or given.round <= before.round:
            return new
        fragments = fragments_of(self._exchange.layout, count)
        for fragment in fragments.changed(before.round, given.round):
            slices = fragments.slices[fragment]
            put(own, slices, take(new, slices))
        return own

    def __enter__(self) -> Outer:
        self._steps, self._underway = 0, None
        self._entered = True
        self._pulled(wait(self._exchange.begin_pull()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a vector that is on its way unless there is an error; steps after it are not pushed."""
        underway, self._underway, self._entered = self._underway, None, False
        going_on, self._start = self.running, None
        if underway is not None:
            try:
                if error is None:
                    wait(underway.pushing)
            finally:
                underway.pulling.cancel()
        elif going_on and error is None:
            wait(
                self._exchange.begin_decline(
                    f"The loop ended after {self._steps} of {self._every} inner steps."
                )
            )
