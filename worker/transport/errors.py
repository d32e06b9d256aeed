"""What a failed call means: try again, take the answer, or give up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import grpc
import grpc.aio
from grpc import StatusCode

from varangian.protos.errors import Code
from varangian.protos.metadata_keys import CODE, ROUND
from varangian.protos.text import escape

CODE_LIMIT, SENTENCE_LIMIT = 40, 1000
"""Characters of what a server says that reach a log or a terminal, with control characters escaped."""
DIGITS = 20
"""Of the number of a round, which has 64 bits."""


class Kind(Enum):
    """Whose move it is after a failure."""

    PASSING = auto()
    """The same call may succeed in a moment."""
    ANSWER = auto()
    """The server looked at the vector and did not count it. Nothing is wrong with the connection."""
    FINAL = auto()
    """No repetition helps."""


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
TAKEN, RUN, REPEATED = "SESSION_TAKEN", "RUN", "REPEATED"
PASSING_CODES = frozenset(
    {"BUSY", "RESTARTED", "STREAMS", "PULLS", "JOINS", "CALLS", "IDLE", "REPLACED", "STOPPING", TAKEN}
)
"""The dead call or the dead process that is in the way will be noticed as dead; quotas fill up again."""
AGE = "AGE"
"""A call that stays open has done so for long enough; nothing is wrong."""
RENEWABLE = frozenset({"REVOKED", "EXPIRED"})
"""The certificate counts no longer; there may be another one by now."""
STRANGE = frozenset({"NOT_JOINED", RUN})
"""The server is not the one that this worker has joined: join again."""
FINAL_CODES = (Code.PROTOCOL, Code.RUN, Code.LAYOUT, Code.COMMON, Code.DIGEST)
ANSWERS = frozenset(
    {"STALE", "FUTURE", "COUNTED", "FAULTY", "UNSOUND", "FINISHED", "UNOFFERED", "UPLOADS", REPEATED}
    | {"NOT_INVITED", "TOO_OLD"}
    | {code.name for code in Code if code not in FINAL_CODES}
)

HINTS = {
    StatusCode.UNAVAILABLE: "Is the server running, and can it be reached from here?",
    StatusCode.DEADLINE_EXCEEDED: "The server does not answer; is it overloaded, paused or cut off?",
    StatusCode.UNIMPLEMENTED: "Is this a Varangian server?",
    StatusCode.RESOURCE_EXHAUSTED: "A message was too large; do both ends run the same version?",
}


@dataclass(frozen=True)
class Refusal:
    """A failed call, without gRPC; what the other end said is safe to print."""

    status: StatusCode
    code: str
    """The server's stable code; empty when the failure did not come from a Varangian server."""
    sentence: str
    round: int | None
    """The round that the server was in, when it said so."""

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Refusal:
        trailing = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
        round = trailing.get(ROUND, "")
        return cls(
            error.code(),
            escape(trailing.get(CODE, ""), CODE_LIMIT),
            escape(error.details() or "", SENTENCE_LIMIT),
            int(round) if len(round) <= DIGITS and round.isascii() and round.isdigit() else None,
        )

    @property
    def kind(self) -> Kind:
        if self.code in PASSING_CODES or self.status in (PASSING_STATUS if self.code else SILENT_STATUS):
            return Kind.PASSING
        return Kind.ANSWER if self.code in ANSWERS else Kind.FINAL

    @property
    def words(self) -> str:
        """Whose they are and what they say."""
        if self.code:
            return f"{self.sentence} [{self.code}]"
        return f"{self.status.name}: {self.sentence.rstrip('.')}."

    @property
    def hint(self) -> str:
        """What to look at, when the failure did not come from a Varangian server."""
        return "" if self.code else HINTS.get(self.status, "")

    def __str__(self) -> str:
        return f"{self.words} {self.hint}".rstrip()
