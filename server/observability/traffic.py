"""Traffic of a server: pushes by their outcome, and bytes of payloads by the way that they took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
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
class Traffic:
    """The traffic of one server since its start. For the event loop."""

    pushes: Counter[tuple[Outcome, str]] = field(default_factory=Counter[tuple[Outcome, str]])
    """The number of pushes by outcome and, where there is one, the code of the refusal."""
    received: Counter[Channel] = field(default_factory=Counter[Channel])
    """Bytes of payloads of pushes."""
    sent: Counter[Channel] = field(default_factory=Counter[Channel])
    """Bytes of payloads of pulls."""

    @contextmanager
    def push(self) -> Generator[Push]:
        """Count one push by how this context ends; it counts unless told otherwise."""
        push = Push()
        outcome: tuple[Outcome, str] = ("cut", "")
        try:
            yield push
            outcome = ("duplicate" if push.duplicate else "counted", "")
        except Refused as error:
            outcome = ("fault" if error.refusal.spends_f else "refused", error.refusal.code)
            raise
        finally:
            self.pushes[outcome] += 1


@dataclass
class Push:
    """One push while it is served."""

    duplicate: bool = False
    """Whether the same vector counts already."""
