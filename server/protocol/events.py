"""Policy, events, effects and state of a run, as plain data: no clock, no tensor, no wire.

`round` says how these fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal, TypeAlias

from varangian.protos.refusals import Refusal
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting, WaitingHistory

Worker: TypeAlias = str
Seconds: TypeAlias = float
Condition: TypeAlias = Callable[[Collection[Worker], Collection[Worker]], str | None]
"""Of the workers whose vectors would count and of those that are proven faulty: why the aggregation rule
promises nothing for these rows; None when its condition holds."""


def unconditional(pushed: Collection[Worker], faulty: Collection[Worker]) -> str | None:
    """The condition of a rule that takes any rows."""
    return None


@dataclass(frozen=True)
class RoundPolicy:
    """What a run agreed on before its first round."""

    workers: tuple[Worker, ...]
    rounds: int
    quorum: int
    """How many workers must have answered for a round to close at its deadline."""
    deadline: Seconds
    """How long a round stays open for those who are late."""
    shortfall: Literal["wait", "skip", "fail"]
    """What to do at the deadline when the quorum is not met."""
    f: int
    """How many workers may be Byzantine."""
    max_skips: int = 10
    """After so many rounds in a row without an update the run is over: nothing loops for ever."""
    requires: Condition = unconditional
    """What the rule asks of the rows of a round. No round closes that does not meet it."""
    waiting: AdaptiveWaiting | None = None
    """When a round closes before its deadline without those who are late; None: never."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", tuple(sorted(self.workers)))
        n = len(self.workers)
        if n == 0 or len(set(self.workers)) < n:
            raise ValueError(f"`workers` should be different names, at least one. Found {self.workers}.")
        if self.f < 0:
            raise ValueError(f"`f` should be a non-negative integer. Found {self.f}.")
        if not 1 <= self.quorum <= n:
            raise ValueError(f"`quorum` should be between 1 and n = {n}. Found {self.quorum}.")
        if not 0 <= self.f < n:
            raise ValueError(f"`f` should be between 0 and n - 1 = {n - 1}. Found {self.f}.")
        if min(self.rounds, self.max_skips) < 1:
            found = f"{self.rounds} and {self.max_skips}"
            raise ValueError(f"`rounds` and `max_skips` should be at least 1. Found {found}.")
        if not self.deadline > 0:
            raise ValueError(f"`deadline` should be a positive number of seconds. Found {self.deadline}.")

    def spare(self, asked: int, quorum: int) -> int:
        """How many of those asked may be missing from a round that ends before its deadline.

        As many as the quorum leaves, but never more than f: so the first answers alone decide nothing. With
        f = 0 nobody is Byzantine, and the quorum alone says.
        """
        left = max(0, asked - quorum)
        return min(left, self.f) if self.f else left

    def shortage(
        self, pushed: Collection[Worker], faulty: Collection[Worker], quorum: int | None = None
    ) -> str:
        """What keeps a round from being aggregated, as the end of a sentence; empty if nothing does.

        A proven fault counts for the quorum: the rule has one row less, and one Byzantine row less.
        """
        quorum = self.quorum if quorum is None else quorum
        if len(pushed) + len(faulty) < quorum:
            return f"the quorum of {quorum} is not met"
        if not pushed:
            return "there is no vector to aggregate"
        reason = self.requires(pushed, faulty)
        return f"the rule promises nothing for these rows: {reason.rstrip('.')}" if reason else ""


@dataclass(frozen=True)
class Offer:
    """An upload begins. Its digest is empty when only its end will tell."""

    worker: Worker
    round: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Push:
    """The upload is complete, and its vector is sound."""

    worker: Worker
    round: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Settled:
    """These uploads are complete and sound, all at once; no other can count in this round any more."""

    round: int
    digests: Mapping[Worker, bytes]
    at: Seconds


@dataclass(frozen=True)
class Fault:
    """The worker sent what no honest worker sends."""

    worker: Worker
    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Decline:
    """The worker has nothing to send in this round. It proves nothing."""

    worker: Worker
    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Gone:
    """The upload of this round is over without a push; nobody writes to its memory any more."""

    worker: Worker
    round: int
    at: Seconds


@dataclass(frozen=True)
class Tick:
    """Time has passed; due at `wake_at`."""

    at: Seconds


@dataclass(frozen=True)
class Committed:
    """The closed round has become an update."""

    round: int
    at: Seconds


@dataclass(frozen=True)
class Skipped:
    """The closed round could not become an update."""

    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Stop:
    """Whoever runs the server ends the run."""

    reason: str
    at: Seconds


@dataclass(frozen=True)
class Ready:
    """A worker asks for a model, and waits: its pull is parked."""

    worker: Worker
    round: int
    """The first that it would answer."""
    at: Seconds


@dataclass(frozen=True)
class Left:
    """Nobody is there any more whose pull could be answered."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Absent:
    """No process of this worker is connected: a round whose quorum is met does not wait for it."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Present:
    """A process of this worker has connected: rounds wait for it as for the others."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Withdraw:
    """The certificate of this worker was revoked: nothing that it sent and that is not used yet counts."""

    worker: Worker
    reason: str
    at: Seconds


Event: TypeAlias = (
    Offer
    | Push
    | Settled
    | Fault
    | Decline
    | Gone
    | Tick
    | Committed
    | Skipped
    | Stop
    | Ready
    | Left
    | Absent
    | Present
    | Withdraw
)


@dataclass(frozen=True)
class Accept:
    """The offer may upload, or the push counts."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Duplicate:
    """The push counts already; tell the worker that all is well."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Reject:
    refusal: Refusal
    round: int
    """The current round, for whoever asked about another."""


@dataclass(frozen=True)
class RollCall:
    """Who answered a round that is no longer open, and why it ended. Names are sorted."""

    round: int
    workers: tuple[Worker, ...]
    """Whose push counts."""
    faults: Mapping[Worker, str]
    """Who proved faulty, and by what."""
    missing: tuple[Worker, ...]
    waited: Seconds
    """How long the round was open."""
    because: str
    declined: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Who had nothing to send, and why."""
    revoked: tuple[Worker, ...] = ()
    """Who takes no part because its certificate was revoked; not among the missing."""
    not_waited_for: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Who of the missing was not waited for, and why; the round waited for the others in vain."""


@dataclass(frozen=True)
class Close(RollCall):
    """Aggregate these pushes, then report `Committed` or `Skipped`."""

    ages: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """In rounds, of the models that the vectors were made for; empty where all are made for this one."""
    factors: Mapping[Worker, float] = field(default_factory=dict[Worker, float])
    """What each vector counts at its age; empty where all count alike."""


@dataclass(frozen=True)
class Skip(RollCall):
    """This round has no update."""


@dataclass(frozen=True)
class Open:
    round: int


@dataclass(frozen=True)
class Invite:
    """Answer the worker's pull with the model of this round, which is the open one."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Finish:
    reason: str


@dataclass(frozen=True)
class Forget:
    """Forget every vector of this worker that is kept for later rounds, after the rounds closed so far."""

    worker: Worker


Effect: TypeAlias = Accept | Duplicate | Reject | Close | Skip | Open | Invite | Finish | Forget


class Phase(Enum):
    OPEN = auto()
    CLOSED = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class RoundState:
    """All that the machine remembers."""

    round: int = 0
    phase: Phase = Phase.OPEN
    opened_at: Seconds | None = None
    """None until the first worker of round 0 shows up."""
    closed_at: Seconds | None = None
    overdue: bool = False
    """Whether the deadline has passed and the policy is to wait."""
    skips: int = 0
    """Rounds in a row, up to this one, that had no update."""
    reason: str = ""
    """Why the run is finished."""
    not_waited_for: Mapping[Worker, str] | None = None
    """Who was not waited for in the round that is being aggregated, and why."""
    quorum_took: Seconds | None = None
    """Until enough had answered this round for the adaptive wait to begin."""
    pace: WaitingHistory = field(default_factory=WaitingHistory)
    """What is remembered of the rounds before."""
    uploads: Mapping[Worker, tuple[int, bytes]] = field(default_factory=dict[Worker, tuple[int, bytes]])
    """Open uploads, also those of rounds that are over: (round, digest)."""
    absent: frozenset[Worker] = frozenset()
    """Workers without a process that is connected."""
    pushed: Mapping[Worker, bytes] = field(default_factory=dict[Worker, bytes])
    faults: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    declined: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    revoked: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers whose certificate was revoked and that have not come back with another one, and why."""
