"""The exchange of a user's loop with the server: what the two forms of a worker have in common.

Each step has a part in the thread of the loop, which touches the model, and one on the loop of
`Background`, which is a future.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from varangian.client.background import Background
from varangian.client.outcome import DECLINED, Outcome
from varangian.client.session import NO_PUSH, RESTARTED, Given, Session
from varangian.client.training.memory import MomentumMemory
from varangian.client.training.model import SHOWN, ModelVector
from varangian.client.training.scaling import Unscaling
from varangian.protos.contract import Terms
from varangian.protos.layout import Layout
from varangian.protos.text import escape
from varangian.structured_logs import event
from varangian.worker.training.device import as_in_a_new_thread
from varangian.worker.training.flat import DivergedError, ModelError, check_finite
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.results import Finished, Receipt

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

log = logging.getLogger(__name__)
T = TypeVar("T")

LARGEST = sys.float_info.max
"""Of what a vector is divided by."""
LONGEST = 400
"""Characters of a reason in the log."""
AGAIN = 60.0
"""Seconds between two lines about rounds that are declined."""
END = 5.0
"""Seconds that a connection has to close."""
OVERFLOW = (
    "The gradients have NaN or infinity: they overflowed at the scale of the loss, which GradScaler lowers "
    "with its next update; or, if it goes on, the loss is NaN or the model has diverged."
)
BUFFERS = "The buffers of the model have NaN or infinity, or numbers too large to be sent."
NOT_FINITE = (
    "The gradients have NaN or infinity, or numbers too large to be sent: the model has diverged, or the "
    "data has bad samples."
)


class Declined:
    """Says in the log that rounds are declined: at the first, and as it goes on once a minute at most.

    Args:
        name: of the worker.
        clock: seconds, by default those of this machine.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._row = 0
        """Rounds since the last push."""
        self._said: float | None = None

    def push(self) -> None:
        """A vector is sent."""
        self._row = 0

    def decline(self, round: int, reason: str) -> None:
        """A round is declined."""
        self._row += 1
        now = self._clock()
        if self._said is not None and now - self._said < AGAIN:
            return
        self._said = now
        many = "" if self._row == 1 else f", as are the {self._row - 1} before it"
        log.warning(
            "%s: round %d is declined%s: %s",
            self._name,
            round,
            many,
            escape(reason, LONGEST),
            extra=event("declines", worker=self._name, round=round, in_a_row=self._row),
        )


class Exchange:
    """One worker's exchange with the server. Not to be used from two threads at once.

    Args:
        name: of the worker.
        model: its parameters.
        session: its calls.
        background: where they are made.
        memory: its momentum.
    """

    def __init__(
        self,
        name: str,
        model: ModelVector,
        session: Session,
        background: Background,
        memory: MomentumMemory,
    ) -> None:
        self.name, self.model, self.memory = name, model, memory
        self._session, self._background = session, background
        self._process = os.getpid()
        self._end = weakref.finalize(self, _abandon, session, background, self._process)
        self._given: Given | None = None
        """What was pulled last."""
        self._answered = True
        """Whether there was a push for it, or the round was declined."""
        self._began = 0.0
        self._seconds = 0.0
        """From the pull until there was a vector."""
        self._finished: Finished | None = None
        self._unscaling = Unscaling()
        self._told = set[str]()
        self._declined = Declined(name)
        self._pushing: list[Future[Outcome]] = []

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def terms(self) -> Terms:
        return self._session.terms

    @property
    def run(self) -> str:
        return self._session.run

    @property
    def round(self) -> int:
        return -1 if self._given is None else self._given.round

    @property
    def reason(self) -> str:
        return "" if self._finished is None else self._finished.reason

    @property
    def parameters(self) -> Tensor:
        if self._given is None:
            raise ClientError("`parameters` are those of the last pull. Found none: call pull() first.")
        return self._given.parameters[: self.model.layout.numel]

    def begin_pull(self) -> Future[Given | Finished]:
        self._check_open()
        if self._finished is not None:
            return _done(self._finished)
        unanswered = None if self._answered else self.round
        if unanswered is not None:
            self._declined.decline(unanswered, NO_PUSH)
        self._answered = True
        pull = self._session.pull(self.round, unanswered)
        # A delta is made where it is pushed: the pull after it must not take its turn.
        return self._submit(_after(self.drain(), pull) if self.memory.makes_deltas else pull)

    @as_in_a_new_thread()
    def end_pull(self, got: Given | Finished, zero_grad: bool) -> bool:
        """Take up what was pulled; whether there is a round to compute."""
        if isinstance(got, Finished):
            if self._finished is None:
                self._finished = got
                self.memory.tidy()
                log.info("%s: %s", self.name, got.reason, extra=event("worker_done", worker=self.name))
            return False
        before, self._given = self._given, got
        if before is None or got.round <= before.round or got.start != before.start:
            if before is not None:
                log.warning(
                    "%s starts again with round %d: its server was restarted",
                    self.name,
                    got.round,
                    extra=event("starts_again", worker=self.name),
                )
            self.memory.rewind(got.run, got.terms, got.round)
        self.model.take(got.parameters)
        if zero_grad:
            self.model.clear_gradients()
        self._answered, self._began = False, time.monotonic()
        return True

    @as_in_a_new_thread()
    def begin_push(
        self,
        vector: Tensor | None,
        scaler: GradScaler | None,
        divide: float,
        copy: bool,
        plain: bool = False,
    ) -> Future[Outcome]:
        """Make the vector and begin to send it.

        Args:
            vector: of the user's own; None takes the gradients of the model.
            scaler: that has scaled them.
            divide: a number to divide by.
            copy: whether a vector of the user's own may change meanwhile.
            plain: whether it goes without worker momentum.
        """
        given = self._open_round("push()")
        if not (isinstance(divide, Real) and 0 < divide <= LARGEST):
            raise ClientError(f"`divide` should be a finite number above 0. Found {divide!r}.")
        if vector is None:
            flat, unused = self.model.gradient()
            self._say_unused(unused)
        else:
            flat = self.model.checked(vector)
            flat = flat.clone() if copy or divide != 1 or scaler is not None else flat
        if scaler is not None:
            self._unscaling.vector(scaler, flat)
        if divide != 1:
            flat.div_(divide)
        flat = flat.cpu()
        try:
            check_finite(flat)
        except DivergedError:
            if vector is not None and scaler is None:
                raise ClientError(
                    "`vector` should have finite numbers. Found NaN, infinity, or a number too large to "
                    "be sent."
                ) from None
            return self.begin_decline(OVERFLOW if scaler is not None else NOT_FINITE)
        if given.start == (self.run, self.terms.epoch) and self.memory.beta > 0 and not plain:
            flat = self.memory.vector(given.round, flat)
        try:
            flat = self.model.completed(flat)
        except DivergedError:
            return self.begin_decline(BUFFERS)
        except ModelError as error:
            raise ClientError(str(error)) from None
        self._answered, self._seconds = True, time.monotonic() - self._began
        late = self._late(given)
        self._declined.push()
        memory = self.memory if self.memory.makes_deltas else None
        future = self._submit(_push(self._session, given, flat, late, memory))
        self._pushing = [one for one in self._pushing if not one.done()] + [future]
        return future

    def begin_decline(self, reason: str) -> Future[Outcome]:
        given = self._open_round("decline()")
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ClientError(f"`reason` should be a sentence, a str. Found {type(reason).__name__}.")
        self._answered = True
        self._declined.decline(given.round, reason)
        return self._submit(_decline(self._session, given, reason))

    def unscale(self, scaler: GradScaler) -> None:
        """Unscale the gradients of the model, as to clip them."""
        self._unscaling.parameters(scaler, self.model.parameters)

    def drain(self) -> list[Future[Outcome]]:
        """Pushes that are on their way."""
        return [one for one in self._pushing if not one.done()]

    def begin_close(self) -> Future[None] | None:
        """Close the connection; None if it is closed, or is that of another process."""
        if os.getpid() != self._process or self._end.detach() is None:
            return None
        for future in self.drain():
            future.cancel()
        return self._background.submit(self._session.close())

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return self._background.submit(work)

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise ClientError(
                f"Worker {self.name} was connected by process {self._process} and cannot be used in a "
                "fork of it. Connect in the process that works, and start it with the method spawn."
            )
        if not self._end.alive:
            raise ClientError(f"Worker {self.name} is closed. Connect again.")

    def _open_round(self, what: str) -> Given:
        self._check_open()
        if self._finished is not None:
            raise ClientError(
                f"{what} answers a round of a run that goes on. Found its end: {self.reason}."
            )
        if self._given is None or self._answered:
            raise ClientError(
                f"{what} answers one pull(). Found none before it: pull the parameters of a round."
            )
        return self._given

    def _say_unused(self, unused: tuple[str, ...]) -> None:
        if unused and "unused" not in self._told:
            self._told.add("unused")
            more = ", ..." if len(unused) > SHOWN else ""
            log.warning(
                "%s: no gradient for %s%s; zeros are sent for parameters that a loss does not use",
                self.name,
                ", ".join(unused[:SHOWN]),
                more,
                extra=event("unused_parameters", worker=self.name, parameters=list(unused[:SHOWN])),
            )

    def _late(self, given: Given) -> str:
        """A sentence where the computation took longer than a round has; it is logged once."""
        deadline = given.terms.deadline
        if not 0 < deadline < self._seconds:
            return ""
        sentence = (
            f"The computation took {self._seconds:.3g} s, and a round ends after {deadline:g} s: later "
            "vectors may not count."
        )
        if "late" not in self._told:
            self._told.add("late")
            log.warning("%s: %s", self.name, sentence, extra=event("computes_too_long", worker=self.name))
        return sentence


def wait(future: Future[T]) -> T:
    """The result of a future. Whatever interrupts the wait, as Ctrl-C, cancels it."""
    try:
        return future.result()
    except CancelledError:
        raise ClientError("The worker was closed meanwhile.") from None
    except BaseException:
        future.cancel()
        raise


async def _push(
    session: Session, given: Given, flat: Tensor, late: str, memory: MomentumMemory | None
) -> Outcome:
    push = session.push(given, flat) if memory is None else _push_delta(session, given, flat, memory)
    receipt = await push
    reason = f"{receipt.sentence} {late}".strip()
    return Outcome(receipt.counted, given.round, receipt.weight, receipt.weight_round, receipt.code, reason)


async def _push_delta(session: Session, given: Given, flat: Tensor, memory: MomentumMemory) -> Receipt:
    """Push what is new in a vector since the last that counted."""
    if given.start != (session.run, session.terms.epoch):
        return RESTARTED
    before = memory.unconfirmed(given.round)
    if before is not None:
        # What the server does not have of it is part of this one.
        receipt = await session.push(replace(given, round=before[0]), before[1])
        if receipt.counted:
            await asyncio.to_thread(memory.confirm, before[0])
    delta = await asyncio.to_thread(memory.delta, given.round, flat)
    receipt = await session.push(given, delta)
    if receipt.counted:
        await asyncio.to_thread(memory.confirm, given.round)
    return receipt


async def _after(futures: Sequence[Future[Outcome]], work: Coroutine[Any, Any, T]) -> T:
    """Do some work once these futures are done, whatever came of them."""
    # Whoever gives up this work cancels none of them.
    others = [asyncio.shield(asyncio.wrap_future(future)) for future in futures]
    try:
        await asyncio.gather(*others, return_exceptions=True)
    except BaseException:
        work.close()
        raise
    return await work


async def _decline(session: Session, given: Given, reason: str) -> Outcome:
    await session.decline(given, reason)
    return Outcome(False, given.round, code=DECLINED, reason=reason)


def _done(value: Finished) -> Future[Given | Finished]:
    future = Future[Given | Finished]()
    future.set_result(value)
    return future


def _abandon(session: Session, background: Background, process: int) -> None:
    """Close the connection of a worker that nobody has closed: it was dropped, or the program ends."""
    if os.getpid() != process:
        return
    closing = background.submit(session.close())
    if not background.is_here:  # the collector of garbage runs in any thread
        with suppress(Exception):
            closing.result(END)
