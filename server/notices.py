"""The vocabulary of NOTIFY-ACK: what can happen on the way of a vector, what follows, what is remembered.

`notify` says how these fit together. All of it is plain data: no clock, no tensor, no wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from varangian.server.events import Seconds, Tick, Worker

Members: TypeAlias = Callable[[int], Sequence[Worker]]
"""Whose vectors a round reduces over; every worker's turn comes again and again."""


@dataclass(frozen=True)
class NotifyPolicy:
    """What a run agreed on before its first round."""

    workers: tuple[Worker, ...]
    members: Members
    deadline: Seconds
    """How long a round waits for members that are silent."""
    quorum: int = 1
    """The fewest vectors to reduce over; all members where a round has fewer."""

    def __post_init__(self) -> None:
        n = len(self.workers)
        if n == 0 or len(set(self.workers)) < n:
            raise ValueError(f"`workers` should be different names, at least one. Found {self.workers}.")
        if not self.deadline > 0:
            raise ValueError(f"`deadline` should be a positive number of seconds. Found {self.deadline}.")
        if not 1 <= self.quorum <= n:
            raise ValueError(f"`quorum` should be between 1 and n = {n}. Found {self.quorum}.")


class Denial(Enum):
    """Why a push was denied. The name is the stable code, the value the sentence sent back."""

    UNKNOWN_WORKER = "This name is not one of the workers of the run."
    UNACKNOWLEDGED = "The last push of this worker is not used yet; wait for its acknowledgement."
    EQUIVOCATION = "Another vector has this number; it stays, and this one was not looked at."
    OLD = "A push of this number was used already; go on with the one that is expected."
    GAP = "Pushes are numbered one by one; go on with the one that is expected."
    BUSY = "An upload of this worker is still open; finish it or give it up first."
    UNWRITTEN = "No upload of this number and digest is open; begin it first."


@dataclass(frozen=True)
class Write:
    """A worker wants to write a vector to its buffer."""

    worker: Worker
    seq: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Notify:
    """The vector is there, whole and sound."""

    worker: Worker
    seq: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Torn:
    """The upload broke off: nobody writes to the buffer any more, and what is in it is worth nothing."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Dead:
    """The worker is gone, with any upload; it lives again with the next thing that it says."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Consumed:
    """The vectors of a `Reduce` were used, or found to be of no use: their memory is free."""

    round: int
    at: Seconds


Event: TypeAlias = Write | Notify | Torn | Dead | Consumed | Tick


@dataclass(frozen=True)
class Go:
    """The buffer is the worker's to write to, until `Notify`, `Torn` or `Dead`."""

    worker: Worker
    seq: int


@dataclass(frozen=True)
class Hold:
    """The vector is there and waits to be used; the acknowledgement follows."""

    worker: Worker
    seq: int


@dataclass(frozen=True)
class Ack:
    """The vector was used, once: the worker may push the next one."""

    worker: Worker
    seq: int
    digest: bytes
    """Without it a worker that was restarted would take this for its own first push."""


@dataclass(frozen=True)
class Deny:
    worker: Worker
    code: Denial
    expected: int
    """The number that the worker's next push should have."""


@dataclass(frozen=True)
class Reduce:
    """Aggregate what these workers' buffers hold, then report `Consumed`."""

    round: int
    pushes: Mapping[Worker, int]
    """Whose, by name, and the number of the push."""
    missing: tuple[Worker, ...]
    """Members without a vector, sorted."""
    because: str


@dataclass(frozen=True)
class Pass:
    """Too few members had a vector at the deadline; those that are there wait for their next turn."""

    round: int
    because: str


Effect: TypeAlias = Go | Hold | Ack | Deny | Reduce | Pass


@dataclass(frozen=True)
class Edge:
    """The way from one worker to the server; its buffer has room for one vector."""

    used: tuple[int, bytes] | None = None
    """Number and digest of the last push that was used, and acknowledged."""
    upload: tuple[int, bytes] | None = None
    """Number and digest of what is being written to the buffer."""
    held: tuple[int, bytes] | None = None
    """Number and digest of what is in the buffer."""
    dead: bool = False

    @property
    def expected(self) -> int:
        """The number of the next push that is a new one."""
        last = self.held or self.used
        return 0 if last is None else last[0] + 1


@dataclass(frozen=True)
class NotifyState:
    """All that is remembered."""

    round: int = 0
    opened_at: Seconds | None = None
    """None until the first worker of round 0 shows up."""
    reducing: tuple[Worker, ...] = ()
    """Whose buffers are being read."""
    edges: Mapping[Worker, Edge] = field(default_factory=dict[Worker, Edge])
    """Of the workers that were heard of."""
