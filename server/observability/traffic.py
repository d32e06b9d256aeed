"""Traffic of a server: pushes by their outcome, and bytes of payloads by the way that they took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from varangian.protos.errors import Refused

Channel: TypeAlias = Literal["grpc", "data"]
"""The way of a payload: in the messages of its call, or on a data connection beside it."""
Outcome: TypeAlias = Literal["counted", "duplicate", "refused", "fault", "cut"]
"""The outcome of a push: its vector counts; it counted before; it was refused; it proves a fault; or the
call ended before an answer."""


@dataclass
class OpenCall:
    """A push or a pull while it is served; worker and round are known when its first message is."""

    name: Literal["push", "pull"]
    worker: str = ""
    round: int = -1
    outcome: Outcome = "counted"
    """Of a pull: whether the model was sent, or the call was `cut` or `refused`."""
    code: str = ""
    """Of the refusal, if it was refused."""
    began: int = 0
    ended: int = 0
    """Nanoseconds since 1970; 0 where nobody asks for them."""


@dataclass
class Traffic:
    """The traffic of one server since its start. For the event loop."""

    pushes: Counter[tuple[Outcome, str]] = field(default_factory=Counter[tuple[Outcome, str]])
    """The number of pushes by outcome and, where there is one, the code of the refusal."""
    received: Counter[Channel] = field(default_factory=Counter[Channel])
    """Bytes of payloads of pushes."""
    sent: Counter[Channel] = field(default_factory=Counter[Channel])
    """Bytes of payloads of pulls."""
    on_call: Callable[[OpenCall], None] | None = None
    """Called with each push and pull when it has ended."""
    trace_parent: Callable[[int], str] | None = None
    """From a round, what those who pull its parameters are told of its span; None says nothing."""

    @contextmanager
    def push(self) -> Generator[OpenCall]:
        """Count one push by how this context ends; it counts unless told otherwise."""
        call = OpenCall("push")
        try:
            with self._call(call):
                yield call
        finally:
            self.pushes[call.outcome, call.code] += 1

    @contextmanager
    def pull(self, worker: str, round: int) -> Generator[OpenCall]:
        """While the model of a round is sent to a worker."""
        call = OpenCall("pull", worker, round)
        with self._call(call):
            yield call

    @contextmanager
    def _call(self, call: OpenCall) -> Generator[None]:
        on_call = self.on_call
        if on_call is not None:
            call.began = time.time_ns()
        try:
            yield
        except Refused as error:
            call.outcome = "fault" if error.refusal.spends_f else "refused"
            call.code = error.refusal.code
            raise
        except BaseException:
            call.outcome = "cut"
            raise
        finally:
            if on_call is not None:
                call.ended = time.time_ns()
                on_call(call)
