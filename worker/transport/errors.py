"""Failed calls: what the server, gRPC or something on the way said, and what to do about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc import StatusCode

from varangian.protos.metadata_keys import CODE, ROUND
from varangian.protos.refusals import REFUSALS, Reaction, Refusal
from varangian.protos.text import escape

CODE_LIMIT, SENTENCE_LIMIT = 40, 1000
"""Characters of what a server says that reach a log or a terminal, with control characters escaped."""
DIGITS = 20
"""Of the number of a round, which has 64 bits."""


PASSING_STATUS = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.DATA_LOSS,
        StatusCode.ABORTED,
        # grpc.aio says so when a call ends during a write, and then the server's answer is lost: ask again.
        StatusCode.INTERNAL,
    }
)
SILENT_STATUS = PASSING_STATUS | {
    StatusCode.CANCELLED,
    StatusCode.UNKNOWN,
    StatusCode.RESOURCE_EXHAUSTED,
}
"""The same where no Varangian server has answered, but gRPC or something on the way."""
HINTS = {
    StatusCode.UNAVAILABLE: "Is the server running, and can it be reached from here?",
    StatusCode.DEADLINE_EXCEEDED: "The server does not answer; is it overloaded, paused or cut off?",
    StatusCode.UNIMPLEMENTED: "Is this a Varangian server?",
    StatusCode.RESOURCE_EXHAUSTED: "A message was too large; do both ends run the same version?",
}


@dataclass(frozen=True)
class FailedCall:
    """A failed call, without gRPC; what the other end said is safe to print."""

    status: StatusCode
    code: str
    """The server's stable code; empty when the failure did not come from a Varangian server."""
    sentence: str
    round: int | None
    """The round that the server was in, when it said so."""

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> FailedCall:
        trailing = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
        round = trailing.get(ROUND, "")
        return cls(
            error.code(),
            escape(trailing.get(CODE, ""), CODE_LIMIT),
            escape(error.details() or "", SENTENCE_LIMIT),
            int(round) if len(round) <= DIGITS and round.isascii() and round.isdigit() else None,
        )

    @property
    def refusal(self) -> Refusal | None:
        """The server's refusal; None when it did not come from a Varangian server, or from a newer one."""
        return REFUSALS.get(self.code)

    @property
    def reaction(self) -> Reaction:
        """The reaction to it. A status that may pass counts for more than a code that says to go on."""
        passing = self.status in (PASSING_STATUS if self.code else SILENT_STATUS)
        known = None if self.refusal is None else self.refusal.reaction
        if known is None or (passing and known not in (Reaction.REJOIN, Reaction.RENEW)):
            return Reaction.RETRY if passing else Reaction.STOP
        return known

    @property
    def words(self) -> str:
        """The sentence and, in brackets, the code that leads to its explanation."""
        if self.code:
            return f"{self.sentence} [{self.code}]"
        return f"{self.status.name}: {self.sentence.rstrip('.')}."

    @property
    def hint(self) -> str:
        """Advice when the failure did not come from a Varangian server."""
        return "" if self.code else HINTS.get(self.status, "")

    def __str__(self) -> str:
        return f"{self.words} {self.hint}".rstrip()


def is_cancelled() -> bool:
    """Whether somebody has cancelled this task.

    A call that ended with its channel raises `CancelledError`, too.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
